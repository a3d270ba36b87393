"""Awkward texts, and seeded mixtures of them."""

import random

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n\r\n",
    "\t\tif x:\n\t\t\treturn y\n",
    "   leading and trailing   ",
    "a b  c   d    e     f      g",
    "line\n\n\n  indented\n\ttab \t mixed \n \n  ",
    "\u00a0no-break\u2003em\u3000ideographic\u200bzero\u0085next\u2028line\u1680ogham",
    "Hello, world! How are you today?",
    "I'm you're he'll she'd we've they're it's don't can't 'tis rock'n'roll",
    "I'M YOU'RE HE'LL SHE'D WE'VE THEY'RE IT'S DON'T CAN'T 'TIS ROCK'N'ROLL",
    "I\u2019m \u2018quoted\u2019 \u201cdouble\u201d l\u2019\u00e9t\u00e9 'S's'T't ''s '''re",
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890",
    "3.14159 -2.5e-10 1,000,000 0x7fff 1_000 10:30 2026-11-23 192.168.0.1 50%",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \uff11\uff12\uff13 \u2160\u2161\u2162 \u00bd\u00be x\u00b2 H\u2082O \u2460\u2461",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u5929\u6c14\u600e\u4e48\u6837\uff1f\u3002\u3000\u5168\u89d2",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3068\u3072\u3089\u304c\u306a \uff76\uff80\uff76\uff85",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430 \u0456 \u0457\u0436\u0430\u043a",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5 \u1f08\u03c1\u03c7\u03ae",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f \u064e\u064f\u0650",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964 \u0995\u09c7\u09ae\u09a8 \u0b86\u0b9a\u0bc8 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u; Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144; \u00c5ngstr\u00f6m na\u00efve fa\u00e7ade stra\u00dfe \u0130stanbul \u0131",
    "e\u0301 n\u0303 a\u030a o\u0308\u0332 \u0301lone x\u0305\u0305\u0305y \u20dd q\u0489",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5 \u2764\ufe0f 1\ufe0f\u20e3 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "\U00010330\U00010331 \U0001d400\U0001d401\U0001d7d8 \U00020000\U0002a6df \U000e0001 \U0010fffd \ue000 \ufffd \ufffe",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom soft\u00adhyphen \u202eoverride\u202c",
    "bell\u0007 esc\u001b[31mred\u001b[0m nul\u0000 del\u007f \u0001\u0002\u0003\u0004\u0005\u0006 \u0080\u0090",
    "fn main() {\n    println!(\"{:?}\", vec![1, 2, 3].iter().map(|x| x * 2).collect::<Vec<_>>());\n}\n",
    "def f(x: int = 0) -> dict[str, list]:\n    \"\"\"Doc.\"\"\"\n    return {k: v for k, v in x.items() if k != '_'}  # end\n",
    "#include <stdio.h>\nint main(void) { for (int i=0;i<10;++i) printf(\"%d\\n\", i); return a->b && c || !d; }",
    "SELECT * FROM t WHERE a='x''y' AND b<>3; -- comment /* c */ ../../path C:\\dir\\file.txt",
    "<div class=\"a\" id='b'>&amp;&#39;</div><!-- x --> {\"k\": [1, 2.0, null, true]} <s></s> <unk> <0x0A>",
    "$\\sum_{i=0}^{n} x_i^2 \\leq \\frac{1}{2}$ \u2200x\u2208\u211d \u2203y: x\u2260y \u2192 \u221e \u222b\u2202 \u20ac\u00a3\u00a5 \u2122\u00a9\u00ae \u00b1\u00d7\u00f7",
    "camelCaseWord PascalCase SCREAMING_SNAKE snake_case kebab-case HTTPServer2 iPhone15Pro \u00c9T\u00c9\u00e9t\u00e9 \u01c5ungla",
    "!!! ??? ... --- === *** ### $$$ %%% &&& ((())) [[[]]] {{{}}} ~~~ ``` \u2014\u2013\u2026 \u2022\u25a0\u25ba \u3010\u3011 \u00ab\u00bb",
    "http://example.com/a?b=c&d=%20#e mailto:x.y+z@example.org @user #tag",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbb",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft supercalifragilistic",
    " \u00a0 \t \n \u3000 x", "\n \n", " \n", "\n ", "x\n\n y", "x  \n  y", "a\r\rb\r\n c", "...\n\n...", "!\n\n\n?",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|im_end|><|im_ <|im_start|", "a<|im_end|>b<|im_end|> c", "<<|im_end|>>", "<|im_end|><|im_end|>",
    "<s> x </s> y", "<|begin_of_text|>z<|eot_id|>",
    "The quick brown fox jumps over the lazy dog. " * 8,
]


def mixtures(count, seed=7):
    rng = random.Random(seed)
    words = sorted({word for text in TEXTS for word in text.split(" ")})
    characters = sorted({c for text in TEXTS for c in text})
    spaces = [" ", " ", " ", "  ", "\n", "\n\n", " \n", "\t", "   ", "\u00a0", "\r\n", ""]
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.random()
            if kind < 0.5:
                parts.append(rng.choice(words))
            elif kind < 0.8:
                parts.append("".join(rng.choice(characters) for _ in range(rng.randint(1, 4))))
            else:
                parts.append(rng.choice("'sSdDmMtTlLvVeErR09 aZ\u00e9\u00c9_-.,\n\u0301\u4e00") * rng.randint(1, 4))
            parts.append(rng.choice(spaces))
        yield "".join(parts)

#!/usr/bin/env python3
"""Writes a small vocabulary in the form of Kimi-K2's, and what tiktoken makes of awkward texts.

    pip install tiktoken==0.12.0 regex==2026.5.9
    generate_tiktoken.py

`tiktoken/tiktoken.model` and `tiktoken/tokenizer_config.json` are what a directory has;
`tiny-tiktoken.jsonl` is as `generate.py` writes it: the second list has all added tokens parsed, the
first those that are not special. The pattern is that of moonshotai/Kimi-K2-Instruct's
`tokenization_kimi.py`; its rules are what tests compare with, through tiktoken's own engine.
"""

import base64
import json
import pathlib
import random

import tiktoken
from tiktoken._educational import bpe_train

from texts import TEXTS, mixtures

OUT = pathlib.Path(__file__).parent
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
BEFORE, BEHIND = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join([
    r"[\p{Han}]+",
    f"{BEFORE}{UPPER}*{LOWER}+{BEHIND}",
    f"{BEFORE}{UPPER}+{LOWER}*{BEHIND}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
TOKENS = 600
# Added tokens by their distance to the last rank; what is between them is reserved.
ADDED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 6: "<|im_start|>", 9: "[UNK]"}
NOT_SPECIAL = {4: "<think>", 5: "<s>"}
MORE = [
    "[BOS]a[EOS] <|im_user|>hi<|im_end|><think>x</think><s>",
    "<|reserved_token_607|><|reserved_token_608|>",
    "\u4f60\u597dworld\u4e16\u754c \u3005\u4eba\u3006 \u3007\u4e00\u4e8c a\u4e00b\u4e8cC \u4e00\u3042\u30a2 \U00020000x\u2e80\u2f00",
]


def ranks():
    """Trained merges, the later half shuffled: tokens that no merge leads to, and other orders."""
    trained = bpe_train("\n".join([*TEXTS, *MORE]), TOKENS, "(?V1)" + PATTERN, visualise=None)
    tokens = sorted(trained, key=trained.get)
    first, rest = tokens[:TOKENS - 170], tokens[TOKENS - 170:]
    random.Random(5).shuffle(rest)
    return {token: rank for rank, token in enumerate(first + rest)}


def main():
    mergeable = ranks()
    listed = {TOKENS + at: name for at, name in {**ADDED, **NOT_SPECIAL}.items()}
    special = {name: at for at, name in listed.items()}
    for rank in range(TOKENS, max(listed)):
        special.setdefault(listed.get(rank, f"<|reserved_token_{rank}|>"), rank)
    encoding = tiktoken.Encoding(name="tiny", pat_str=PATTERN, mergeable_ranks=mergeable,
                                 special_tokens=special)
    folder = OUT / "tiktoken"
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in mergeable.items())
    (folder / "tiktoken.model").write_text("".join(lines))
    decoder = {
        str(at): dict(content=name, lstrip=False, normalized=False, rstrip=False,
                      single_word=False, special=name not in NOT_SPECIAL.values())
        for at, name in sorted(listed.items())
    }
    config = dict(added_tokens_decoder=decoder, bos_token="[BOS]", eos_token="[EOS]",
                  unk_token="[UNK]", tokenizer_class="TikTokenTokenizer",
                  auto_map=dict(AutoTokenizer=["tokenization_kimi.TikTokenTokenizer", None]))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    with open(OUT / "tiny-tiktoken.jsonl", "w", encoding="utf-8") as out:
        for text in [*TEXTS, *MORE, *mixtures(150)]:
            plain = encoding.encode(text, allowed_special=set(NOT_SPECIAL.values()),
                                    disallowed_special=())
            parsed = encoding.encode(text, allowed_special="all")
            assert encoding.decode(parsed) == text
            line = [text, plain] + ([parsed] if parsed != plain else [])
            out.write(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

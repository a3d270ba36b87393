//! A byte-level BPE tokenizer of any size, in a file's metadata.

use std::collections::VecDeque;

use super::Spec;
use crate::config::Arch;
use crate::gguf::Writer;

/// Token types of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + \
     '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if \
     add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Special tokens, then bytes, then pairs of bytes, then triples..., as far as `vocab` goes.
pub(super) fn write(spec: &Spec, writer: &mut Writer) {
    let special = SPECIAL.len().min(spec.vocab);
    let mut tokens: Vec<String> = SPECIAL[..special].iter().map(|&s| s.to_owned()).collect();
    let alphabet: Vec<char> = letters_first().into_iter().map(symbol).collect();
    let bytes = alphabet.len().min(spec.vocab - special);
    tokens.extend(alphabet[..bytes].iter().map(char::to_string));

    // Every token one byte longer than a token before it: all differ, and each is one merge.
    let mut merges = Vec::new();
    let mut shorter: VecDeque<String> = tokens[special..].iter().cloned().collect();
    'full: while let Some(prefix) = shorter.pop_front() {
        for last in &alphabet {
            if tokens.len() == spec.vocab {
                break 'full;
            }
            merges.push(format!("{prefix} {last}"));
            let token = format!("{prefix}{last}");
            shorter.push_back(token.clone());
            tokens.push(token);
        }
    }

    let mut types = vec![NORMAL; tokens.len()];
    types[..special].fill(CONTROL);
    let pre = match spec.arch {
        Arch::Llama => "smollm",
        _ => "qwen2",
    };
    let end = special.saturating_sub(1) as u32;
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", pre)
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.token_type", types)
        .set("tokenizer.ggml.merges", merges)
        .set("tokenizer.ggml.bos_token_id", 0_u32)
        .set("tokenizer.ggml.eos_token_id", end)
        .set("tokenizer.ggml.add_bos_token", false)
        .set("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// All bytes, those of English text first: a small vocabulary then still writes words.
fn letters_first() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=u8::MAX).collect();
    bytes.sort_by_key(|byte| match byte {
        b' ' | b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        _ => 2,
    });
    bytes
}

/// The character that stands for a byte in GPT-2's vocabularies: itself where it is printable,
/// else the next one from U+0100 on.
fn symbol(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("256 + at most 68 is a character")
}

#!/usr/bin/env python3
"""Writes what llama.cpp's tokenizer makes of awkward texts, for `tests/golden.rs`.

    pip install llama-cpp-python
    generate.py MODEL.gguf OUT.jsonl [--pre NAME] [--random N]

One line per text: `["text", [ids], [ids with control tokens parsed]]`; the third is left out where
it equals the second. `--pre` overrides the file's pre-tokenizer, so that one vocabulary tests them
all; `--random` adds seeded mixtures of the texts' characters.
"""

import argparse
import ctypes
import json

import llama_cpp

from texts import TEXTS, mixtures


class Vocabulary:
    def __init__(self, path, pre):
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        if pre:
            overrides = (llama_cpp.llama_model_kv_override * 2)()
            overrides[0].key = b"tokenizer.ggml.pre"
            overrides[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            ctypes.memmove(
                ctypes.addressof(overrides[0].value), pre.encode() + b"\0", len(pre) + 1
            )
            parameters.kv_overrides = overrides
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        assert self.model, f"llama.cpp does not read {path} with {pre}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokens(self, text, parse_special):
        data = text.encode("utf-8")
        room = len(data) + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, False, parse_special)
        assert 0 <= count <= room, (text, count)
        return list(ids[:count])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--pre")
    parser.add_argument("--random", type=int, default=0)
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    vocabulary = Vocabulary(options.model, options.pre)
    with open(options.out, "w", encoding="utf-8") as out:
        for text in [*TEXTS, *mixtures(options.random)]:
            plain = vocabulary.tokens(text, False)
            parsed = vocabulary.tokens(text, True)
            line = [text, plain] + ([parsed] if parsed != plain else [])
            out.write(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

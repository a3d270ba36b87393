"""llama.cpp's perplexity of a text, to put beside `helix perplexity`.

usage: perplexity_llama.py MODEL [-f FILE] [-c 512] [--chunks N] [-t 2] [--json]

Its definition: the text's tokens are cut into chunks of `-c` tokens (a rest is dropped), each with an empty cache;
if the model adds a BOS token, it replaces each chunk's first token. Only the second half of a chunk is scored:
positions c/2 .. c-2 predict their next token. The perplexity is exp of the mean negative log likelihood. KV is f16,
flash attention on.
"""
import argparse
import json
import math
import pathlib
import sys

import numpy as np

import llama

TEXT = pathlib.Path(__file__).parent / "data" / "alice.txt"


def score(context, model, tokens, size):
    """The sum of the negative log likelihoods of one chunk's second half, and their number."""
    for first in range(0, size, llama.BATCH):
        last = min(first + llama.BATCH, size)
        wanted = [i >= size // 2 for i in range(first, last)]
        context.decode([(tokens[i], i, 0, w) for i, w in zip(range(first, last), wanted)])
        if not any(wanted):
            continue
        rows = sum(wanted)
        flat = np.ctypeslib.as_array(context.logits(), shape=(rows * model.vocab_size,))
        logits = flat.reshape(rows, -1).astype(np.float64)
        top = logits.max(axis=1)
        norms = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        positions = [i for i, w in zip(range(first, last), wanted) if w]
        pairs = [(row, tokens[i + 1]) for row, i in enumerate(positions) if i + 1 < size]
        yield sum(norms[row] - logits[row, token] for row, token in pairs), len(pairs)


def perplexity(model, text, size, threads, most):
    tokens = model.tokenize(text)
    chunks = min(len(tokens) // size, most or len(tokens))
    if not chunks:
        raise SystemExit(f"the text has {len(tokens)} tokens, a chunk needs {size}: lower -c")
    bos = llama.api.llama_vocab_bos(model.vocab)
    adds_bos = llama.api.llama_vocab_get_add_bos(model.vocab)
    context = llama.Context(model, threads, size)
    total, count = 0.0, 0
    for chunk in range(chunks):
        piece = tokens[chunk * size:(chunk + 1) * size]
        if adds_bos:
            piece[0] = bos
        for loss, scored in score(context, model, piece, size):
            total, count = total + loss, count + scored
        context.truncate()
        print(f"\r{chunk + 1}/{chunks}: {math.exp(total / count):.4f}", end="", file=sys.stderr)
    print(file=sys.stderr)
    context.close()
    return math.exp(total / count), count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-f", "--file", default=TEXT)
    parser.add_argument("-c", "--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, help="stop after so many")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = llama.Model(args.model)
    text = pathlib.Path(args.file).read_text()
    value, count = perplexity(model, text, args.context, args.threads, args.chunks)
    if args.json:
        print(json.dumps({"perplexity": value, "tokens": count}))
    else:
        print(f"perplexity {value:.4f} over {count} scored tokens ({model.path.name}, {llama.version()})")


main()

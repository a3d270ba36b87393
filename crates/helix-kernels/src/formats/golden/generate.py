#!/usr/bin/env python3
"""Writes golden.bin: random blocks of every format, and the numbers that ggml has for them.

    pip install gguf==0.19.0 && python3 generate.py

Layout: for each format in the order below, BLOCKS blocks as on disk (ELEMENTS numbers of a float
format), then their elements as little-endian f32.
"""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

BLOCKS, ELEMENTS = 3, 64
# Where a block holds its f16 factors; random bits elsewhere are codes and integer scales.
FACTORS = {
    T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.MXFP4: [],
}  # fmt: skip


def blocks(kind: T, rng: np.random.Generator) -> np.ndarray:
    if kind not in FACTORS:
        values = rng.normal(size=ELEMENTS).astype(np.float32)
        if kind == T.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if kind == T.F16 else np.float32).view(np.uint8)
    data = rng.integers(0, 256, size=(BLOCKS, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in FACTORS[kind]:
        factors = rng.normal(scale=0.1, size=(BLOCKS, 1)).astype(np.float16)
        data[:, at : at + 2] = factors.view(np.uint8)
    if kind == T.MXFP4:
        data[:, 0] = rng.integers(110, 130, size=BLOCKS)  # a power of two
    return data


def main() -> None:
    rng = np.random.default_rng(2026)
    out = bytearray()
    for kind in [T.F32, T.F16, T.BF16, *FACTORS]:
        data = blocks(kind, rng)
        out += data.tobytes() + dequantize(data, kind).astype("<f4").tobytes()
    pathlib.Path(__file__).with_name("golden.bin").write_bytes(out)


main()

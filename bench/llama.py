"""llama.cpp through llama-cpp-python's low-level API, set as llama-bench sets it.

Flash attention on, f16 KV, 512 tokens per batch, as many threads for batches as for single tokens.
"""
import ctypes
import pathlib
import random
import sys
import time

import llama_cpp as api

api.llama_backend_init()


@api.llama_log_callback
def _quiet(level, text, data):
    pass


api.llama_log_set(_quiet, ctypes.c_void_p(0))

BATCH = 512
HONEST = 2048  # tokens of a filled cache that are computed; the rest are copies of them
MOSTLY_Q4_0 = 2  # llama_ftype


def version():
    return f"llama-cpp-python {api.__version__}"


def requantize(source, target):
    """Writes `target`, `source`'s weights as Q4_0 by llama.cpp's own quantiser."""
    params = api.llama_model_quantize_default_params()
    params.ftype = MOSTLY_Q4_0
    params.allow_requantize = True
    partial = pathlib.Path(str(target) + ".part")
    failed = api.llama_model_quantize(str(source).encode(), str(partial).encode(),
                                      ctypes.byref(params))
    if failed:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"llama.cpp cannot requantise {source}: error {failed}")
    partial.rename(target)


class Model:
    def __init__(self, path):
        self.path = pathlib.Path(path)
        params = api.llama_model_default_params()
        self.handle = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.file_type = self._metadata("general.file_type")
        self.vocab = api.llama_model_get_vocab(self.handle)
        self.vocab_size = api.llama_vocab_n_tokens(self.vocab)

    def _metadata(self, key):
        value = ctypes.create_string_buffer(256)
        api.llama_model_meta_val_str(self.handle, key.encode(), value, len(value))
        return value.value.decode()

    def format(self):
        """The name of most weights' format, from the file's metadata."""
        names = {"0": "F32", "1": "F16", "2": "Q4_0", "3": "Q4_1", "7": "Q8_0"}
        return names.get(self.file_type, f"type {self.file_type}")

    def kv_shape(self):
        """Layers, KV heads and their size: what a filled cache depends on, whatever the weights."""
        handle = self.handle
        head_dim = api.llama_model_n_embd(handle) // api.llama_model_n_head(handle)
        return api.llama_model_n_layer(handle), api.llama_model_n_head_kv(handle), head_dim

    def shape(self):
        """A file name's part that tells caches of unlike models apart."""
        return "x".join(str(n) for n in self.kv_shape())

    def bytes_per_token(self, depth):
        """What a token must read: all weights once (a tied head is the embedding) and f16 K and V."""
        layers, heads, head_dim = self.kv_shape()
        return api.llama_model_size(self.handle) + depth * layers * heads * head_dim * 2 * 2

    def close(self):
        api.llama_model_free(self.handle)

    def tokenize(self, text):
        """Token ids as llama.cpp's perplexity tool makes them: BOS first if the model adds one."""
        raw = text.encode()
        out = (api.llama_token * (len(raw) + 8))()
        count = api.llama_tokenize(self.vocab, raw, len(raw), out, len(out), True, False)
        assert count >= 0, "more tokens than bytes"
        return list(out[:count])


class Context:
    """A KV cache of `capacity` tokens for each of `sequences`, and the batches that fill it."""

    def __init__(self, model, threads, capacity, sequences=1, shared=False):
        """`shared`: the sequences draw on one pool and may hold the same tokens."""
        params = api.llama_context_default_params()
        params.n_ctx = capacity * (1 if shared else sequences)
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max, params.kv_unified = sequences, shared
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.model, self.sequences = model, sequences
        self.handle = api.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise SystemExit(f"llama.cpp makes no context of {params.n_ctx} tokens")
        self.memory = api.llama_get_memory(self.handle)
        self.batch = api.llama_batch_init(BATCH, 0, 1)
        self.random = random.Random(1)
        self.depth = 0

    def fill(self, depth):
        """Brings sequence 0 to `depth` random tokens."""
        while self.depth < depth:
            count = min(BATCH, depth - self.depth)
            self.decode([(self.token(), self.depth + i, 0, False) for i in range(count)])
            self.depth += count

    def double(self):
        """Appends a copy of sequence 0 to itself, its keys turned to their new positions."""
        size = api.llama_state_seq_get_size(self.handle, 0)
        state = (ctypes.c_uint8 * size)()
        assert api.llama_state_seq_get_data(self.handle, state, size, 0) == size
        assert api.llama_state_seq_set_data(self.handle, state, size, 1)
        api.llama_memory_seq_add(self.memory, 1, 0, -1, self.depth)
        api.llama_memory_seq_cp(self.memory, 1, 0, 0, -1)
        api.llama_memory_seq_rm(self.memory, 1, -1, -1)
        self.depth *= 2

    def save(self, path):
        partial = pathlib.Path(f"{path}.part")
        tokens = (api.llama_token * 1)()
        assert api.llama_state_seq_save_file(self.handle, str(partial).encode(), 0, tokens, 0)
        partial.rename(path)

    def load(self, path, depth):
        tokens, count = (api.llama_token * 1)(), ctypes.c_size_t()
        read = api.llama_state_seq_load_file(self.handle, str(path).encode(), 0, tokens, 1,
                                             ctypes.byref(count))
        last = api.llama_memory_seq_pos_max(self.memory, 0)
        if not read or last != depth - 1:
            raise SystemExit(f"{path} holds no cache of {depth} tokens (last is {last}); delete it")
        self.depth = depth

    def token(self):
        return self.random.randrange(self.model.vocab_size)

    def decode(self, entries):
        """Runs one batch of (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, logits
        status = api.llama_decode(self.handle, batch)
        if status:
            raise SystemExit(f"llama_decode failed with {status}")

    def truncate(self):
        """Forgets what came after the filled depth."""
        for sequence in range(self.sequences):
            api.llama_memory_seq_rm(self.memory, sequence, self.depth, -1)

    def generate(self, count):
        """Tokens per second, over all sequences, of `count` steps of one token each."""
        self.decode([(self.token(), self.depth, s, True) for s in range(self.sequences)])
        start = time.perf_counter()
        for i in range(count):
            at = self.depth + 1 + i
            self.decode([(self.token(), at, s, True) for s in range(self.sequences)])
        elapsed = time.perf_counter() - start
        self.truncate()
        return count * self.sequences / elapsed

    def prompt(self, count):
        """Tokens per second of a prompt of `count` tokens; logits of the last one."""
        start = time.perf_counter()
        for first in range(0, count, BATCH):
            last = min(first + BATCH, count)
            self.decode([(self.token(), self.depth + i, 0, i + 1 == count)
                         for i in range(first, last)])
        elapsed = time.perf_counter() - start
        self.truncate()
        return count / elapsed

    def logits(self):
        """The last batch's logits: a flat pointer to [entries that wanted them, vocabulary]."""
        return api.llama_get_logits(self.handle)

    def close(self):
        api.llama_batch_free(self.batch)
        api.llama_free(self.handle)


def saved_cache(model, threads, depth, path):
    """`path`, made if need be: a filled cache of `depth` tokens.

    To fill 32768 tokens takes llama.cpp most of an hour on 2 cores. Its speed at a depth does not depend on what the
    cache holds, so the first 2048 tokens are computed and then doubled.
    """
    if not path.exists():
        context = Context(model, threads, 2 * max(depth, HONEST), 2, shared=True)
        context.fill(min(depth, HONEST))
        while context.depth < depth:
            context.double()
            context.decode([(context.token(), context.depth, 0, True)])  # turns the keys
            context.truncate()
        context.depth = depth
        context.truncate()
        context.save(path)
        context.close()
    return path

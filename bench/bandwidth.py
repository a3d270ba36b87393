"""Read bandwidth of this machine, independent of both engines: C loads, one thread per core asked."""
import ctypes
import pathlib
import subprocess
import tempfile
import threading
import time

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
/* 8 independent sums, so that no addition waits for the one before; the compiler makes vectors of them. */
uint64_t read_all(const uint64_t *at, size_t words) {
    uint64_t sum[64] = {0};
    for (size_t i = 0; i + 64 <= words; i += 64)
        for (int j = 0; j < 64; j++) sum[j] += at[i + j];
    uint64_t all = 0;
    for (int j = 0; j < 64; j++) all += sum[j];
    return all;
}
void fill(uint64_t *at, size_t words) { for (size_t i = 0; i < words; i++) at[i] = i * 0x9E3779B97F4A7C15u; }
"""


class Reader:
    """Threads that each read their own buffer, larger than any cache, at the same time."""

    def __init__(self, threads, megabytes=256):
        with tempfile.TemporaryDirectory() as scratch:
            source = pathlib.Path(scratch) / "read.c"
            library = pathlib.Path(scratch) / "read.so"
            source.write_text(SOURCE)
            command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source]
            subprocess.run(command, check=True)
            self.code = ctypes.CDLL(str(library))
        pointer = ctypes.POINTER(ctypes.c_uint64)
        self.code.read_all.argtypes = self.code.fill.argtypes = [pointer, ctypes.c_size_t]
        self.code.read_all.restype = ctypes.c_uint64
        self.words = megabytes * 2**20 // 8
        self.buffers = [(ctypes.c_uint64 * self.words)() for _ in range(threads)]
        for buffer in self.buffers:
            self.code.fill(buffer, self.words)

    def gigabytes_per_second(self, passes=4):
        """Bytes that all threads read over the time until the last one is through."""
        barrier = threading.Barrier(len(self.buffers) + 1)

        def work(buffer):
            barrier.wait()
            for _ in range(passes):
                self.code.read_all(buffer, self.words)  # ctypes lets go of the interpreter lock
            barrier.wait()

        team = [threading.Thread(target=work, args=(b,)) for b in self.buffers]
        for thread in team:
            thread.start()
        barrier.wait()
        start = time.perf_counter()
        barrier.wait()
        elapsed = time.perf_counter() - start
        for thread in team:
            thread.join()
        return len(self.buffers) * passes * self.words * 8 / elapsed / 1e9


if __name__ == "__main__":
    import sys

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    reader = Reader(count)
    print(" ".join(f"{reader.gigabytes_per_second():.1f}" for _ in range(5)), "GB/s")

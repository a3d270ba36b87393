"""Helix beside llama.cpp on this machine, in one interleaved run.

usage: vs_llama.py MODEL.gguf [MODEL.gguf ...] [--helix target/release/helix] [--requantize]
                   [-t 2] [-d 0,8192,32768] [-n 32] [-r 5] [--layouts ARGS;ARGS] [--busy N] [--out FILE.json]

Every round measures, for each test, the read bandwidth, llama.cpp, Helix on one rank and Helix on each layout, one
right after another, so that a slow minute of the machine hits them alike. A ratio is the median of the rounds' ratios.
llama.cpp runs as llama-bench runs it (flash attention, f16 KV, 512 tokens a batch, contexts past the trained
one); its filled caches are made once per depth and kept under --cache.
"""
import argparse
import atexit
import csv
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import bandwidth
import llama

# Times llama.cpp's speed that each test must reach, by the format of the weights.
TARGETS = {
    "Q4_1": {"tg@0": 2.0, "tg@8192": 3.0, "tg@32768": 4.0, "pp512@0": 1.5, "tg x8@0": 2.0},
    "Q4_0": {"tg@0": 1.3, "tg@8192": 3.0, "tg@32768": 4.0, "pp512@0": 1.0, "tg x8@0": 2.0},
}
SHARE_TARGETS = {"tg@0": 0.60}  # of read bandwidth: weights and KV over the whole time of a token
ATTENTION_TARGETS = {"tg@32768": 0.80}  # KV over the time of the partial attention alone
LAYOUT_TARGET = 0.95  # the best layout of as many ranks as threads, to one rank with all threads


class Test:
    """What is measured: `kind` is helix bench's `pp` or `tg`."""

    def __init__(self, kind, count, depth, batch):
        self.kind, self.count, self.depth, self.batch = kind, count, depth, batch
        label = f"pp{count}" if kind == "pp" else "tg" if batch == 1 else f"tg x{batch}"
        self.name = f"{label}@{depth}"

    def flags(self):
        prompt, count = (self.count, 0) if self.kind == "pp" else (0, self.count)
        return ["-p", prompt, "-n", count, "-d", self.depth, "-b", self.batch]


class Helix:
    def __init__(self, binary, model, flags):
        self.command = [str(binary), "bench", str(model), *flags, "-r", "1", "--json"]
        self.layout = None

    def run(self, test):
        """What helix bench says of the test; its own bandwidth is measured in the same seconds."""
        command = self.command + [str(f) for f in test.flags()]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        report = json.loads(done.stdout)
        self.layout = report["layout"]
        same = [r for r in report["runs"] if (r["test"], r["depth"], r["batch"])
                == (test.kind, test.depth, test.batch)]
        if len(same) != 1:
            raise SystemExit(f"{' '.join(command)} reports no single run of {test.name}")
        return same[0]


class Peer:
    """llama.cpp on one model: a context per depth, all alive at once."""

    def __init__(self, path, tests, threads, cache):
        self.model = llama.Model(path)
        room = 64 + max(t.count for t in tests)
        self.contexts = {}
        for test in tests:
            key = (test.depth, test.batch)
            if key in self.contexts:
                continue
            self.contexts[key] = llama.Context(self.model, threads, test.depth + room, test.batch)
            if test.depth:
                saved = cache / f"llama-kv-{self.model.shape()}-{test.depth}.state"
                llama.saved_cache(self.model, threads, test.depth, saved)
                self.contexts[key].load(saved, test.depth)
        for test in tests:  # the first run of each is slower: memory is touched, frequencies rise
            self.run(Test(test.kind, min(test.count, 8), test.depth, test.batch))

    def run(self, test):
        context = self.contexts[(test.depth, test.batch)]
        return context.prompt(test.count) if test.kind == "pp" else context.generate(test.count)

    def close(self):
        for context in self.contexts.values():
            context.close()
        self.model.close()


def measure(path, args, tests):
    """All samples of one model: rows of {test, round, engine, layout, tokens_per_s, ...}."""
    peer = Peer(path, tests, args.threads, args.cache)
    engines = [("helix", Helix(args.helix, path, ["-t", str(args.threads)]))]
    for flags in filter(None, args.layouts.split(";")):
        engines.append(("helix ranks", Helix(args.helix, path, flags.split())))
    reader = bandwidth.Reader(args.threads)
    rows = []

    def add(test, turn, engine, layout, speed, bytes_per_token, read_gb_s, attention=None):
        rows.append({"model": path.name, "format": peer.model.format(), "test": test.name,
                     "round": turn, "engine": engine, "layout": layout, "tokens_per_s": speed,
                     "bytes_per_token": bytes_per_token, "read_gb_s": read_gb_s,
                     "attention_gb_s": attention})

    for turn in range(args.reps):
        for test in tests:
            read = reader.gigabytes_per_second()
            add(test, turn, "llama.cpp", "", peer.run(test),
                peer.model.bytes_per_token(test.depth), read)
            for name, engine in engines:
                run = engine.run(test)
                add(test, turn, name, engine.layout, run["tokens_per_s"]["median"],
                    run["bytes_per_token"], max(read, run["read_gb_s"]),
                    (run.get("attention") or {}).get("gb_s"))
            print(f"\r{path.name}: round {turn + 1}/{args.reps}, {test.name}      ", end="",
                  file=sys.stderr, flush=True)
    print(file=sys.stderr)
    peer.close()
    return rows


def paired(rows, others):
    """The median over rounds of rows' speed to others'."""
    other = {r["round"]: r["tokens_per_s"] for r in others}
    return statistics.median(r["tokens_per_s"] / other[r["round"]] for r in rows)


def roof(rows):
    """The median share of the round's read bandwidth that a decode's bytes take."""
    return statistics.median(r["tokens_per_s"] * r["bytes_per_token"] / (r["read_gb_s"] * 1e9)
                             for r in rows)


def attention_share(rows):
    """The median share of the round's read bandwidth that partial attention alone reaches."""
    shares = [r["attention_gb_s"] / r["read_gb_s"] for r in rows if r["attention_gb_s"]]
    return statistics.median(shares) if shares else None


def verdict(value, target, unit="x"):
    if target is None or value is None:
        return ""
    return f"{unit} >= {target}: {'pass' if value >= target else 'FAIL'}"


def summarise(rows):
    """Table lines of one model, with the targets of its format."""
    targets = TARGETS.get(rows[0]["format"], {})
    lines = []
    for test in dict.fromkeys(r["test"] for r in rows):
        mine = [r for r in rows if r["test"] == test]
        by_engine = {}
        for row in mine:
            by_engine.setdefault((row["engine"], row["layout"]), []).append(row)
        peer = by_engine[("llama.cpp", "")]
        whole = next(v for k, v in by_engine.items() if k[0] == "helix")
        ranks = {k: v for k, v in by_engine.items() if k[0] == "helix ranks"}
        best = max(ranks, key=lambda k: paired(ranks[k], whole), default=None)
        for key, samples in by_engine.items():
            speeds = [r["tokens_per_s"] for r in samples]
            ratio = paired(samples, peer)
            share = roof(samples) if test.startswith("tg@") else None
            attention = attention_share(samples) if test.startswith("tg@") else None
            checks = []
            if key[0] == "helix":
                checks = [verdict(ratio, targets.get(test)),
                          verdict(share, SHARE_TARGETS.get(test), "bandwidth"),
                          verdict(attention, ATTENTION_TARGETS.get(test), "attention")]
            elif key == best:
                beside = paired(samples, whole)
                checks = [verdict(beside, LAYOUT_TARGET, f"{beside:.2f} of 1 rank")]
            lines.append({
                "test": test, "engine": " ".join(filter(None, key)),
                "median": statistics.median(speeds), "min": min(speeds), "max": max(speeds),
                "ratio": ratio, "read_share": share, "attention_share": attention,
                "verdict": ", ".join(filter(None, checks))})
    return lines


def show(lines):
    print("| test | engine | tokens/s | min - max | x llama.cpp | of bandwidth | attention | target |")
    print("|---|---|---:|---:|---:|---:|---:|---|")
    percent = lambda value: "" if value is None else f"{value:.0%}"
    for line in lines:
        print(f"| {line['test']} | {line['engine']} | {line['median']:.1f} "
              f"| {line['min']:.1f} - {line['max']:.1f} | {line['ratio']:.2f} "
              f"| {percent(line['read_share'])} | {percent(line['attention_share'])} "
              f"| {line['verdict']} |")


def machine():
    """Who measured: the processor's name and how many of it there are."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def write(path, report):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    samples = [row for model in report["models"] for row in model["samples"]]
    with open(path.with_suffix(".csv"), "w", newline="") as out:
        table = csv.DictWriter(out, samples[0])
        table.writeheader()
        table.writerows(samples)


def arguments():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--helix", type=pathlib.Path, default="target/release/helix")
    parser.add_argument("--requantize", action="store_true",
                        help="measure each model as Q4_0 too, by llama.cpp's own quantiser")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-d", "--depths", default="0,8192,32768")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="prompt tokens; 0: no such test")
    parser.add_argument("-n", "--tokens", type=int, default=32, help="tokens per decode sample")
    parser.add_argument("-b", "--batch", type=int, default=8, help="sequences of the batched test")
    parser.add_argument("-r", "--reps", type=int, default=5, help="rounds")
    parser.add_argument("--layouts", default="--kvp 2 -t 1;--tpa 2 -t 1",
                        help="flags of further helix runs, apart by ';'")
    parser.add_argument("--busy", type=int, default=0, metavar="N",
                        help="keep N cores busy with foreign processes while measuring")
    parser.add_argument("--cache", type=pathlib.Path, default=cache / "helix" / "bench")
    parser.add_argument("--out", type=pathlib.Path, help="a .json file; a .csv goes beside it")
    return parser.parse_args()


def main():
    args = arguments()
    args.cache.mkdir(parents=True, exist_ok=True)
    models = list(args.models)
    if args.requantize:
        for source in args.models:
            target = args.cache / f"{source.stem.removesuffix('.Q4_1')}.Q4_0.gguf"
            if not target.exists():
                llama.requantize(source, target)
            models.append(target)
    tests = [Test("pp", args.prompt, 0, 1)] if args.prompt else []
    tests += [Test("tg", args.tokens, int(depth), 1) for depth in args.depths.split(",")]
    tests += [Test("tg", args.tokens, 0, args.batch)] if args.batch > 1 else []
    foreign = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
               for _ in range(args.busy)]
    atexit.register(lambda: [process.kill() for process in foreign])
    report = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "threads": args.threads,
              "busy": args.busy, "peer": llama.version(), "models": []}
    print(f"{report['machine']}, {report['date']}, {args.threads} threads, {report['peer']}")
    if args.busy:
        print(f"{args.busy} foreign processes keep cores busy.")
    elif os.getloadavg()[0] > 0.5:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): llama.cpp suffers most.")
    for path in models:
        rows = measure(path, args, tests)
        reads = [r["read_gb_s"] for r in rows if r["engine"] == "llama.cpp"]
        lines = summarise(rows)
        print(f"\n{path.name}: {rows[0]['format']}, {args.reps} rounds, read bandwidth "
              f"{statistics.median(reads):.1f} GB/s ({min(reads):.1f} - {max(reads):.1f})\n")
        show(lines)
        report["models"].append({"model": path.name, "summary": lines, "samples": rows})
    if args.out:
        write(args.out, report)


main()

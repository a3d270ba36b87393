"""Helix beside tensor parallelism, in the same engine and one interleaved run: KV cut by position against KV copied.

usage: helix_vs_tp.py MODEL.gguf [MODEL.gguf ...] [--helix target/release/helix] [-d 32768] [-n 8] [-r 5]
                      [--kv-type f16] [--out FILE.json]

For models with one KV head (MQA) or latents (MLA): `cargo x synthetic` writes some. Two ranks of one thread each.
Every round runs `--kvp 2` and then `--strategy tp --tpa 2`; a ratio is the median of the rounds' ratios.
"""
import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

LAYOUTS = {"helix": ["--kvp", "2", "-t", "1"], "tp": ["--strategy", "tp", "--tpa", "2", "-t", "1"]}
ATTENTION_TARGET = 1.8  # times faster
KV_TARGET = 0.5  # of the bytes per rank, at most

# Lines of a step. What Helix does differently is the first; the all-to-all and the merge are its price.
PARTIAL = ["partial attention"]
ATTENTION = PARTIAL + ["all-to-all", "merge"]
PHASE = ["attention norm", "qkv", "qkv gather", "rope, append", *ATTENTION, "out-projection", "all-reduce (out)"]


def helix(args, command, model, layout, *flags):
    """What a helix command reports."""
    line = [str(args.helix), command, str(model), *LAYOUTS[layout], "--kv-type", args.kv_type, *map(str, flags), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}")
    return json.loads(done.stdout)


def sample(args, model, layout, turn):
    report = helix(args, "bench", model, layout, "-p", 0, "-n", args.tokens, "-d", args.depth, "-r", 3)
    run = report["runs"][0]
    lines = run["lines_us"]
    total = lambda names: sum(lines[name] for name in names)
    return {"model": model.name, "round": turn, "strategy": layout, "layout": report["layout"], "isa": report["isa"],
            "kv_type": args.kv_type, "depth": args.depth, "partial_us": total(PARTIAL), "attention_us": total(ATTENTION),
            "phase_us": total(PHASE), "step_us": sum(lines.values()), "tokens_per_s": run["tokens_per_s"]["median"],
            "kv_bytes_read_per_token": run["attention"]["bytes_per_token"], "kv_gb_s": run["attention"]["gb_s"],
            "read_gb_s": run["read_gb_s"]}


def measure(args, model):
    """Samples of one model: rows; then lines of the table."""
    rows = []
    for turn in range(args.reps):
        for layout in LAYOUTS:
            rows.append(sample(args, model, layout, turn))
        print(f"\r{model.name}: round {turn + 1}/{args.reps}   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    held = {}
    for layout in LAYOUTS:
        ranks = helix(args, "inspect", model, layout)["ranks"]
        held[layout] = max(rank["kv_bytes_per_token"] for rank in ranks)
    return rows, {"model": model.name, "kv_bytes_per_token_and_rank": held, **summary(rows)}


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rows):
    of = {name: [row for row in rows if row["strategy"] == name] for name in LAYOUTS}
    result = {}
    for key in ["partial_us", "attention_us", "phase_us", "step_us"]:
        result[key] = {name: spread([row[key] for row in of[name]]) for name in LAYOUTS}
        ratios = [tp[key] / helix[key] for helix, tp in zip(of["helix"], of["tp"])]
        result[key]["tp_over_helix"] = spread(ratios)
    result["tokens_per_s"] = {name: spread([row["tokens_per_s"] for row in of[name]]) for name in LAYOUTS}
    result["kv_gb_s"] = {name: spread([row["kv_gb_s"] for row in of[name]]) for name in LAYOUTS}
    result["read_gb_s"] = spread([row["read_gb_s"] for row in rows])
    return result


def show(summaries):
    print("| model | attention, ms: helix | tp | tp / helix (min - max) | partial alone | whole phase "
          "| KV per rank and token | tokens/s: helix | tp | target |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for one in summaries:
        ratio = one["attention_us"]["tp_over_helix"]
        held = one["kv_bytes_per_token_and_rank"]
        share = held["helix"] / held["tp"]
        met = ratio["median"] >= ATTENTION_TARGET and share <= KV_TARGET
        ms = lambda name: one["attention_us"][name]["median"] / 1e3
        print(f"| {one['model']} | {ms('helix'):.2f} | {ms('tp'):.2f} "
              f"| {ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f}) "
              f"| {one['partial_us']['tp_over_helix']['median']:.2f} | {one['phase_us']['tp_over_helix']['median']:.2f} "
              f"| {held['helix']:.0f} of {held['tp']:.0f} B | {one['tokens_per_s']['helix']['median']:.1f} "
              f"| {one['tokens_per_s']['tp']['median']:.1f} | {'met' if met else 'missed'} |")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--helix", type=pathlib.Path, default="target/release/helix")
    parser.add_argument("-d", "--depth", type=int, default=32768)
    parser.add_argument("-n", "--tokens", type=int, default=8, help="tokens per decode")
    parser.add_argument("-r", "--reps", type=int, default=5, help="rounds")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--machine", default="", help="what the machine is, for the record")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--out", type=pathlib.Path, help="a .json file; a .csv goes beside it")
    return parser.parse_args()


def main():
    args = arguments()
    rows, summaries = [], []
    if os.getloadavg()[0] > 1.0:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): read the spread.", file=sys.stderr)
    for model in args.models:
        more, one = measure(args, model)
        rows += more
        summaries.append(one)
    show(summaries)
    if args.out:
        names = " ".join(model.name for model in args.models)
        command = f"bench/helix_vs_tp.py {names} -d {args.depth} -n {args.tokens} -r {args.reps} --kv-type {args.kv_type}"
        report = {"machine": args.machine, "date": args.date, "command": command, "models": summaries}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        with open(args.out.with_suffix(".csv"), "w", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            table.writerows(rows)


main()

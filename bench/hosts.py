"""Two hosts of one core each against one: decode tokens/s of helix, tp and medha over MPI, in one interleaved run.

usage: hosts.py MODEL.gguf [MODEL.gguf ...] [--helix FILE] [--hosts-tool FILE] [--delay-us 50] [--gbit 10]
                [-d 0,8192,32768] [-n 16] [-r 3] [--out FILE.json]

Hosts are emulated (docs/hosts.md). `cargo x synthetic` writes models of Llama-3.2-1B's shape. A round runs one host and
then two hosts with each strategy, all depths; ratios are medians over rounds of the ratios within a round.
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

STRATEGIES = {
    "one host": (1, ["--ranks", "1"]),
    "helix": (2, ["--kvp", "2"]),
    "tp": (2, ["--strategy", "tp", "--tpa", "2"]),
    "medha": (2, ["--strategy", "medha", "--kvp", "2"]),
}
COMMUNICATION = ["qkv gather", "all-to-all", "all-reduce (out)", "all-reduce (ffn)", "gather logits"]


def tool(args, hosts):
    """The command that runs what follows on so many hosts of one core each."""
    return [*args.alone.split(), args.hosts_tool, "run", str(hosts), "--delay-us", str(args.delay_us), "--gbit", str(args.gbit), "--"]


def run(line):
    done = subprocess.run([str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, line))} ended with {done.returncode}:\n{done.stderr}")
    if "no namespaces here" in done.stderr:
        raise SystemExit(f"this needs emulated hosts: {done.stderr}")
    return json.loads(done.stdout)


def sample(args, model, strategy, turn):
    """Tokens per second at each depth: rows."""
    hosts, layout = STRATEGIES[strategy]
    start = ["mpirun", "-n", hosts] if hosts > 1 else []
    transport = ["--transport", "mpi", *args.mpi_flags.split()] if hosts > 1 else []
    report = run([*tool(args, hosts), *start, args.helix, "bench", model, "-p", 0, "-n", args.tokens, "-d", args.depths,
                  "-r", args.inner, "-t", 1, "--kv-type", args.kv_type, *layout, *transport, "--json"])
    rows = []
    for one in report["runs"]:
        lines = one["lines_us"]
        rows.append({"model": model.name, "round": turn, "strategy": strategy, "layout": report["layout"],
                     "depth": one["depth"], "tokens_per_s": one["tokens_per_s"]["median"],
                     "step_us": round(sum(lines.values()), 1),
                     "communication_us": round(sum(lines[name] for name in COMMUNICATION if name in lines), 1)})
    return rows


def spread(values):
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def summary(rows, model, depths):
    """What the table shows, by depth."""
    result = []
    for depth in depths:
        of = {name: [row for row in rows if (row["model"], row["strategy"], row["depth"]) == (model, name, depth)]
              for name in STRATEGIES}
        speed = {name: [row["tokens_per_s"] for row in of[name]] for name in STRATEGIES}
        over = {f"helix / {name}": spread([a / b for a, b in zip(speed["helix"], speed[name])])
                for name in STRATEGIES if name != "helix"}
        result.append({"model": model, "depth": depth, "tokens_per_s": {name: spread(speed[name]) for name in speed},
                       "communication_us": {name: spread([row["communication_us"] for row in of[name]]) for name in of},
                       **over})
    return result


def show(summaries):
    print("| model | depth | tokens/s: one host | helix | tp | medha | helix / one host | helix / tp | helix / medha |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    ratio = lambda one: f"{one['median']:.2f} ({one['min']:.2f} - {one['max']:.2f})"
    for one in summaries:
        speeds = " | ".join(f"{one['tokens_per_s'][name]['median']:.2f}" for name in STRATEGIES)
        ratios = " | ".join(ratio(one[f"helix / {name}"]) for name in STRATEGIES if name != "helix")
        print(f"| `{one['model'].removesuffix('.gguf')}` | {one['depth']} | {speeds} | {ratios} |")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--helix", type=pathlib.Path, default="target/release/helix", help="built with `--features mpi`")
    parser.add_argument("--hosts-tool", type=pathlib.Path, default="target/debug/helix-hosts")
    parser.add_argument("--delay-us", type=float, default=50)
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("-d", "--depths", default="0,8192,32768")
    parser.add_argument("-n", "--tokens", type=int, default=16, help="tokens per decode")
    parser.add_argument("-r", "--reps", type=int, default=3, help="rounds")
    parser.add_argument("--inner", type=int, default=1, help="decodes of each depth in a round")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--mpi-flags", default="", help="more flags of helix on two hosts, such as '--comm-thread off'")
    parser.add_argument("--alone", default="", help="a command that runs each measurement when nobody else does, "
                        "such as 'flock FILE' where others hold that lock")
    parser.add_argument("--machine", default="", help="what the machine is, for the record")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--out", type=pathlib.Path, help="a .json file; a .csv goes beside it")
    return parser.parse_args()


def main():
    args = arguments()
    depths = [int(depth) for depth in args.depths.split(",")]
    links = run([*tool(args, 2), args.hosts_tool, "measure", "--json"])
    load = os.getloadavg()[0]
    if load > 1.0 and not args.alone:
        print(f"The machine is busy (load {load:.1f}): read the spread.", file=sys.stderr)
    rows, summaries = [], []
    for model in args.models:
        for turn in range(args.reps):
            for strategy in STRATEGIES:
                rows += sample(args, model, strategy, turn)
            print(f"\r{model.name}: round {turn + 1}/{args.reps}   ", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        summaries += summary(rows, model.name, depths)
    show(summaries)
    if args.out:
        names = " ".join(model.name for model in args.models)
        command = (f"bench/hosts.py {names} --delay-us {args.delay_us:g} --gbit {args.gbit:g} -d {args.depths} "
                   f"-n {args.tokens} -r {args.reps} --kv-type {args.kv_type} {args.mpi_flags}").strip()
        report = {"machine": args.machine, "date": args.date, "command": command,
                  "links": links, "models": summaries}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        with open(args.out.with_suffix(".csv"), "w", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            table.writerows(rows)


main()

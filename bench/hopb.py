"""What HOP-B hides, over links that are emulated inside one process or between hosts, and a picture of it.

usage: hopb.py MODEL.gguf [--helix target/release/helix] [--kvp 2] [-b 8] [-d 4096] [-n 8] [-r 5]
               [--link-us 200] [--link-gbit 1 | --figure3] [--pieces 8] [--svg FILE.svg] [--out FILE.json]
               [--hosts-tool FILE] [--machine TEXT] [--alone COMMAND]

Rounds run `helix bench` with HOP-B off, with --pieces and with auto, one right after another, and medians are printed.
--figure3 first measures attention, and then sets the link's bandwidth so that a request's communication takes 0.6 of
its attention: the paper's figure 3, where 8 requests take 25.6 units in lockstep and 17.2 with HOP-B.
With --hosts-tool, which is helix-hosts, a rank is a process on a host of its own (docs/hosts.md), over MPI.
The picture is one layer of one step of the last round, off above on, from `helix bench --trace`.
"""
import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

COLOURS = {"partial attention": "#4878a8", "all-to-all": "#d8a0a0", "merge": "#7aa874", "wait": "#e8e8e8"}
OTHER = "#b8b0c8"
FLIGHT = {"all-to-all": "#c05050", "all-reduce": "#d8a040", "all-gather": "#d8a040", "gather": "#d8a040"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--helix", default="target/release/helix")
    parser.add_argument("--kvp", type=int, default=2)
    parser.add_argument("-b", "--batch", type=int, default=8)
    parser.add_argument("-d", "--depth", type=int, default=4096)
    parser.add_argument("-n", "--tokens", type=int, default=8)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--link-us", type=float, default=200)
    parser.add_argument("--link-gbit", type=float, default=1)
    parser.add_argument("--figure3", action="store_true")
    parser.add_argument("--pieces", default="8")
    parser.add_argument("--hosts-tool", help="ranks on emulated hosts, over MPI: target/debug/helix-hosts")
    parser.add_argument("--svg", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    parser.add_argument("--alone", default="", help="a command that runs another alone on this machine")
    return parser.parse_args()


def bench(args, hopb, gbit, trace=None):
    kvp, link_us = str(args.kvp), str(args.link_us)
    command = [args.helix, "bench", args.model, "-p", "0", "-n", str(args.tokens), "-r", "1", "-d", str(args.depth)]
    command += ["-b", str(args.batch), "--kvp", kvp, "-t", "1", "--json", "-q", "--hopb", hopb]
    if args.hosts_tool:
        hosts = [args.hosts_tool, "run", kvp, "--delay-us", link_us, "--gbit", f"{gbit or 10:.6f}", "--"]
        command = [*hosts, "mpirun", "-n", kvp, *command, "--transport", "mpi"]
    else:
        command += ["--link-us", link_us] + (["--link-gbit", f"{gbit:.6f}"] if gbit else [])
    command = [*args.alone.split(), *command]
    if trace:
        command += ["--trace", str(trace)]
    run = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["runs"][0]
    lines, overlap = run["lines_us"], run["communication"]
    return {
        "ttl_ms": 1e3 * args.batch / run["tokens_per_s"]["median"],
        "attention_ms": lines["partial attention"] / 1e3,
        "phase_ms": (lines["partial attention"] + lines["all-to-all"] + lines["merge"]) / 1e3,
        "exposed_ms": overlap["all_to_all_exposed_us"] / 1e3,
        "hidden_ms": overlap["all_to_all_hidden_us"] / 1e3,
    }


def figure3_gbit(args, folder):
    """The bandwidth at which the all-to-all's bytes take 0.6 of the time of attention."""
    trace = folder / "free.json"
    attention = bench(args, "off", None, trace)["attention_ms"] / 1e3
    starts = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "b" and e["name"] == "all-to-all"]
    step = max(e["args"]["step"] for e in starts) - 1
    sent = {}
    for event in starts:
        if event["args"]["step"] == step:
            sent[event["pid"]] = sent.get(event["pid"], 0) + event["args"]["bytes"]
    return 8e-9 * max(sent.values()) / (0.6 * attention)


def read_trace(path):
    """Spans and flights of each rank: (name, start, end, step, layer) in microseconds."""
    spans, flights, open_flights = {}, {}, {}
    for event in json.loads(path.read_text())["traceEvents"]:
        rank, args = event["pid"], event.get("args", {})
        if event["ph"] == "X":
            start = event["ts"]
            spans.setdefault(rank, []).append((event["name"], start, start + event["dur"], args["step"], args["layer"]))
        elif event["ph"] == "b":
            open_flights[event["id"]] = event
        elif event["ph"] == "e":
            begun = open_flights.pop(event["id"])
            args = begun["args"]
            flights.setdefault(rank, []).append((event["name"], begun["ts"], event["ts"], args["step"], args["layer"]))
    return spans, flights


def one_layer(path):
    """The last layer of the last step but one, from zero."""
    spans, flights = read_trace(path)
    step = max(span[3] for span in spans[0]) - 1
    layer = max(span[4] or 0 for span in spans[0] if span[3] == step)
    start = min(span[1] for rank in spans.values() for span in rank if span[3:] == (step, layer))
    cut = lambda events: [(n, a - start, b - start) for n, a, b, s, l in events if (s, l) == (step, layer)]
    return {rank: (cut(spans[rank]), cut(flights.get(rank, []))) for rank in spans}


def svg(off, on, caption):
    """Off above on, on one scale."""
    end = max(b for layer in (off, on) for lines, flights in layer.values() for _, _, b in lines + flights)
    left, width, row = 120, 860, 15
    scale = width / end
    out, y = [], 34
    text = lambda x, y, s, size=11: out.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{s}</text>')
    box = lambda a, b, y, h, colour, title: out.append(
        f'<rect x="{left + a * scale:.2f}" y="{y}" width="{max((b - a) * scale, 0.3):.2f}" height="{h}" '
        f'fill="{colour}" stroke="white" stroke-width="0.4"><title>{title}: {b - a:.0f} us</title></rect>')
    for title, layer in (("HOP-B off", off), ("HOP-B on", on)):
        text(4, y, title, 13)
        y += 8
        for rank, (lines, flights) in sorted(layer.items()):
            text(8, y + row - 3, f"rank {rank}: lines")
            for name, a, b in lines:
                box(a, b, y, row, COLOURS.get(name, OTHER), name)
            y += row + 2
            text(8, y + row - 3, "in flight")
            lanes = []
            for name, a, b in sorted(flights, key=lambda flight: flight[1]):
                lane = next((i for i, busy in enumerate(lanes) if busy <= a), len(lanes))
                lanes[lane:lane + 1] = [b]
                box(a, b, y + lane * 6, 5, FLIGHT[name], name)
            y += max(row, 6 * len(lanes)) + 8
        y += 22
    tick = 10 ** len(str(int(end / 10))) / 2
    for i in range(int(end / tick) + 1):
        x = left + i * tick * scale
        out.append(f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="{y - 14}" stroke="#ccc" stroke-width="0.5"/>')
        text(x - 8, y, f"{i * tick / 1e3:g} ms")
    y += 20
    key = {"partial attention": COLOURS["partial attention"], "all-to-all: packing, waiting": COLOURS["all-to-all"],
           "merge": COLOURS["merge"], "other lines": OTHER, "all-to-all in flight": FLIGHT["all-to-all"],
           "all-reduce in flight": FLIGHT["all-reduce"]}
    x = 8
    for name, colour in key.items():
        out.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        text(x + 14, y, name)
        x += 34 + 6.2 * len(name)
    y += 18
    for line in caption:
        text(8, y, line.replace("&", "&amp;").replace("<", "&lt;"), 10)
        y += 14
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="{y}" font-family="sans-serif">'
            '<rect width="100%" height="100%" fill="white"/>' + "\n".join(out) + "</svg>\n")


def main():
    args = arguments()
    modes = ["off", args.pieces, "auto"]
    samples = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        gbit = figure3_gbit(args, pathlib.Path(folder)) if args.figure3 else args.link_gbit
        traces = {mode: pathlib.Path(folder) / f"{mode}.json" for mode in ("off", args.pieces)}
        for _ in range(args.rounds):
            for mode in modes:
                samples[mode].append(bench(args, mode, gbit, traces.get(mode)))
        off_layer, on_layer = one_layer(traces["off"]), one_layer(traces[args.pieces])
    keys = samples["off"][0]
    median = {mode: {key: statistics.median(s[key] for s in samples[mode]) for key in keys} for mode in modes}
    print(f"{args.model}, kvp={args.kvp}, batch {args.batch}, depth {args.depth}, "
          f"links of {args.link_us:g} us and {gbit:.3f} Gbit/s; milliseconds of a step, medians of {args.rounds}")
    print(f"{'HOP-B':8}" + "".join(f"{key:>14}" for key in keys))
    for mode in modes:
        print(f"{mode:8}" + "".join(f"{median[mode][key]:14.2f}" for key in keys))
    off = median["off"]
    for mode in modes[1:]:
        hidden = [o["exposed_ms"] - s["exposed_ms"] for o, s in zip(samples["off"], samples[mode])]
        gain = [o["ttl_ms"] - s["ttl_ms"] for o, s in zip(samples["off"], samples[mode])]
        share = statistics.median(hidden) / off["exposed_ms"]
        print(f"{mode}: {100 * share:.0f} % of the all-to-all hidden, {statistics.median(hidden):.2f} ms of a step; "
              f"TTL lower by {statistics.median(gain):.2f} ms, "
              f"{100 * statistics.median(gain) / max(statistics.median(hidden), 1e-9):.0f} % of that")
    unit = off["attention_ms"] / (2 * args.batch)
    on = median[args.pieces]
    print(f"in units of half a request's attention: communication {off['exposed_ms'] / args.batch / unit:.2f} "
          f"a request; attention, all-to-all and merge {off['phase_ms'] / unit:.1f} off, {on['phase_ms'] / unit:.1f} on")
    if args.svg:
        command = "bench/hopb.py " + " ".join(
            [pathlib.Path(args.model).name, f"-b {args.batch} -d {args.depth} --link-us {args.link_us:g}",
             *(["--hosts-tool helix-hosts"] if args.hosts_tool else []),
             "--figure3" if args.figure3 else f"--link-gbit {gbit:g}", f"--pieces {args.pieces}"])
        caption = [f"One layer of a decode step, {args.batch} requests at depth {args.depth}, KVP {args.kvp}, links of "
                   f"{args.link_us:g} us and {gbit:.3f} Gbit/s; off {off['ttl_ms']:.1f} ms, on {on['ttl_ms']:.1f} ms a step.",
                   f"{args.machine}; {time.strftime('%Y-%m-%d')}; {command}"]
        args.svg.write_text(svg(off_layer, on_layer, caption))
    if args.out:
        args.out.write_text(json.dumps({"machine": args.machine, "date": time.strftime("%Y-%m-%d"), "gbit": gbit,
                                        "arguments": {k: str(v) for k, v in vars(args).items()}, "samples": samples},
                                       indent=1) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The planner's predictions against the engine, over a grid of models, layouts, batches and depths.

    python3 bench/compare_plan.py --helix helix --machine machine.toml --probe MODEL...

Each model decodes under each layout at each batch and depth; layouts that a model cannot have are left
out. Prints every step's predicted and measured time, the bandwidth of reads at that moment, and the
mean absolute error of all. --probe measures the machine anew before each model: where others share it,
it is not the same one for long.
"""

import argparse
import json
import subprocess
import sys

LAYOUTS = ["", "--ranks 2", "--kvp 2", "--strategy tp --tpa 2", "--strategy dp-ep --dp 2"]


def bench(arguments, model, layout):
    """The JSON document of one engine's tests, or None where the layout is refused."""
    command = [arguments.helix, "bench", model, "-p", "0", "-n", str(arguments.tokens)]
    command += ["-d", arguments.depths, "-b", arguments.batches, "-r", str(arguments.repetitions)]
    command += ["--compare-plan", arguments.machine, "--json", "--quiet", *layout.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        print(f"{model} {layout}: {done.stderr.strip()}", file=sys.stderr)
        return None
    done.check_returncode()
    return json.loads(done.stdout)


def probe(arguments):
    """Measures the machine; its profile's bandwidth of reads goes to the table's readers."""
    command = [arguments.helix, "probe", "--out", arguments.machine, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory = json.loads(done.stdout)["profile"]["memory"]["bandwidth_gb_s"]
    print(f"probed: reads {memory['value']} GB/s", file=sys.stderr)


def rows(arguments):
    """Every step that was compared."""
    for model in arguments.models:
        if arguments.probe:
            probe(arguments)
        seen = set()
        for layout in LAYOUTS:
            report = bench(arguments, model, layout)
            # What --ranks chooses may be one of the others.
            if report is None or report["layout"] in seen:
                continue
            seen.add(report["layout"])
            for run in report["runs"]:
                plan = run["plan"]
                name = report["model"].rsplit("/", 1)[-1]
                yield (name, report["layout"], run["batch"], run["depth"], plan["predicted_us"],
                       plan["measured_us"], run["read_gb_s"], plan["error"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--helix", default="helix")
    parser.add_argument("--machine", required=True, help="helix probe's file of this machine")
    parser.add_argument("--probe", action="store_true", help="write that file first, before each model")
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    print("| model | layout | batch | depth | predicted us | measured us | reads GB/s | error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    errors = []
    for *names, predicted, measured, reads, error in rows(arguments):
        errors.append(abs(error))
        cells = [*map(str, names), f"{predicted:.0f}", f"{measured:.0f}", f"{reads:.1f}",
                 f"{100 * error:+.1f} %"]
        print("| " + " | ".join(cells) + " |", flush=True)
    if not errors:
        sys.exit("no step was compared")
    mean = 100 * sum(errors) / len(errors)
    print(f"\nmean absolute error of {len(errors)} steps: {mean:.1f} %")


if __name__ == "__main__":
    main()

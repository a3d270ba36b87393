#!/usr/bin/env python3
"""The planner's predictions against the engine, over a grid of models, layouts, batches and depths.

    helix probe --out machine.toml
    python3 bench/compare_plan.py --helix helix --machine machine.toml MODEL...

Each model decodes under each layout at each batch and depth; layouts that a model cannot have are left
out. Prints every step's predicted and measured time and the mean absolute error of all.
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


def rows(arguments):
    """Every step that was compared."""
    for model in arguments.models:
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
                       plan["measured_us"], plan["error"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--helix", default="helix")
    parser.add_argument("--machine", required=True, help="helix probe's file of this machine")
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    print("| model | layout | batch | depth | predicted us | measured us | error |")
    print("|---|---|---:|---:|---:|---:|---:|")
    errors = []
    for *names, predicted, measured, error in rows(arguments):
        errors.append(abs(error))
        cells = [*map(str, names), f"{predicted:.0f}", f"{measured:.0f}", f"{100 * error:+.1f} %"]
        print("| " + " | ".join(cells) + " |", flush=True)
    if not errors:
        sys.exit("no step was compared")
    mean = 100 * sum(errors) / len(errors)
    print(f"\nmean absolute error of {len(errors)} steps: {mean:.1f} %")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The planner's predictions against the engine, over a grid of models, layouts, batches and depths.

    python3 bench/compare_plan.py --helix helix --machine machine.toml --probe MODEL...

Each model decodes under each layout at each batch and depth; layouts that a model cannot have are left
out. Prints every step's predicted and measured time, the bandwidth of reads at that moment, and the
mean absolute error. --probe measures the machine anew before each model: where others share it, it is not
the same one for long. Steps at whose time reads were more than STEADY off the profile's are on another
machine than the one that was predicted: they are marked, and have a mean of their own.

--save FILE keeps the measurements with the profiles that they were predicted by; --against FILE predicts
them again, so that two planners are compared over the same runs.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

STEADY = 0.15
LAYOUTS = ["", "--ranks 2", "--kvp 2", "--strategy tp --tpa 2", "--strategy dp-ep --dp 2"]


def bench(arguments, model, layout, repetitions):
    """The JSON document of one engine's tests, or None where the layout is refused."""
    command = [arguments.helix, "bench", model, "-p", "0", "-n", str(arguments.tokens)]
    command += ["-d", arguments.depths, "-b", arguments.batches, "-r", str(repetitions)]
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


def reports(arguments):
    """Of every model the profile and the documents of its layouts, measured now."""
    for model in arguments.models:
        if arguments.probe:
            probe(arguments)
        seen, found = set(), []
        for layout in LAYOUTS:
            report = bench(arguments, model, layout, arguments.repetitions)
            # What --ranks chooses may be one of the others.
            if report is None or report["layout"] in seen:
                continue
            seen.add(report["layout"])
            found.append([layout, report])
        yield {"model": model, "profile": Path(arguments.machine).read_text(), "reports": found}


def again(arguments):
    """The saved documents, with the steps predicted anew."""
    for line in Path(arguments.against).read_text().splitlines():
        of_model = json.loads(line)
        Path(arguments.machine).write_text(of_model["profile"])
        for _, report in of_model["reports"]:
            # The very layout: what --ranks chooses is the planner's to change.
            flags = dict(part.split("=") for part in report["layout"].split()[1:])
            flags = " ".join(f"--{name.replace('block', 'kv-block')} {value}"
                             for name, value in flags.items())
            new = bench(arguments, of_model["model"], f"--strategy {report['layout'].split()[0]} {flags}", 1)
            for run, other in zip(report["runs"], new["runs"]):
                plan, measured = other["plan"], run["plan"]["measured_us"]
                run["plan"] = {**plan, "measured_us": measured,
                               "error": plan["predicted_us"] / measured - 1}
        yield of_model


def rows(of_model):
    """Every step that was compared; whether it was steady comes last."""
    probed = tomllib.loads(of_model["profile"])["memory"]["bandwidth_gb_s"]["value"]
    for _, report in of_model["reports"]:
        for run in report["runs"]:
            plan = run["plan"]
            name = report["model"].rsplit("/", 1)[-1]
            yield (name, report["layout"], run["batch"], run["depth"], plan["predicted_us"],
                   plan["measured_us"], run["read_gb_s"], plan["error"],
                   abs(run["read_gb_s"] / probed - 1) <= STEADY)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--helix", default="helix")
    parser.add_argument("--machine", required=True, help="helix probe's file of this machine")
    parser.add_argument("--probe", action="store_true", help="write that file first, before each model")
    parser.add_argument("--save", help="append measurements and profiles to this file")
    parser.add_argument("--against", help="predict the measurements of this file, each by its profile")
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    if bool(arguments.models) == bool(arguments.against):
        parser.error("give models to measure, or --against FILE")
    print("| model | layout | batch | depth | predicted us | measured us | reads GB/s | error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    errors = {True: [], False: []}
    for of_model in again(arguments) if arguments.against else reports(arguments):
        if arguments.save:
            with open(arguments.save, "a", encoding="utf-8") as saved:
                saved.write(json.dumps(of_model) + "\n")
        for *names, predicted, measured, reads, error, steady in rows(of_model):
            errors[steady].append(abs(error))
            mark = "" if steady else " (not steady)"
            cells = [*map(str, names), f"{predicted:.0f}", f"{measured:.0f}", f"{reads:.1f}",
                     f"{100 * error:+.1f} %{mark}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    if not any(errors.values()):
        sys.exit("no step was compared")
    print()
    for steady, name in [(True, "steady"), (False, "not steady")]:
        if errors[steady]:
            mean = 100 * sum(errors[steady]) / len(errors[steady])
            print(f"mean absolute error of {len(errors[steady])} {name} steps: {mean:.1f} %")


if __name__ == "__main__":
    main()

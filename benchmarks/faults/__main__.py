"""Runs the trials that the results do not have yet, and writes a row as each one finishes."""

import json
import random
import shutil
import time
from pathlib import Path

from absl import app, flags

from benchmarks.faults.trials import KINDS, Trials
from benchmarks.result_files import write_result

_KINDS = flags.DEFINE_list("kinds", list(KINDS), "Kinds of trial.")
_TRIALS = flags.DEFINE_integer("trials", 0, "Trials of each kind; 0: as in trials.KINDS.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/faults", "Folder of the runs.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/faults.json", "Rows of all trials.")


def main(_: list[str]) -> None:
    """Runs the trials, writes their rows and counts the right ones."""
    target, root = Path(_JSON.value), Path(_WORKDIR.value).resolve()
    root.mkdir(parents=True, exist_ok=True)
    rows = json.loads(target.read_text()) if target.exists() else []
    done = {(row["kind"], row["number"]) for row in rows}
    trials = Trials(root)
    for kind in _KINDS.value:
        trial, count, right = KINDS[kind]
        for number in range(_TRIALS.value or count):
            if (kind, number) in done:
                continue
            workdir = root / f"{kind}_{number}"
            shutil.rmtree(workdir, ignore_errors=True)
            began = time.monotonic()
            outcome, told = trial(trials, random.Random(f"{kind} {number}"), workdir)
            row = {"kind": kind, "number": number, "outcome": outcome, "right": outcome == right}
            row |= told | {"trial_seconds": round(time.monotonic() - began, 1)}
            rows.append(row)
            write_result(target, rows)
            print(json.dumps(row), flush=True)
            if row["right"]:
                shutil.rmtree(workdir, ignore_errors=True)
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        print(f"{kind}: {sum(row['right'] for row in of_kind)} of {len(of_kind)} as they should be")


if __name__ == "__main__":
    app.run(main)

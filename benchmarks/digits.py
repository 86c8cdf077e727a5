"""`python -m benchmarks.digits [--seeds=3]`: the whole digits job over several seeds.

Each seed has its own split of the scans, data generator, samples, student and judge. Writes the
mean and standard deviation of every row to `benchmarks/results/digits.json` and, as a page,
`digits.html`, and the first seed's samples beside it as `digits.png`.
"""

import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from pathlib import Path

from absl import app, flags

from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row, aggregate, format_table, in_order, write_metrics

_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs, with seeds 0, 1, ...")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark_digits", "Holds a folder for each seed.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/digits.json", "Where to write.")


def main(_: list[str]) -> None:
    """Runs what is not done yet, then aggregates."""
    runs, accuracies, costs = [], [], []
    for seed in range(_SEEDS.value):
        workdir = Path(_WORKDIR.value) / str(seed)
        metrics = workdir / "metrics.json"
        # Written last: for a run that was stopped and resumed, it is the cost of the rest.
        if not (workdir / "cost.json").exists():
            start = time.monotonic()
            subprocess.run(
                ["make", "demo", f"WORKDIR={workdir}", f"ARGS=--config.seed={seed}"], check=True
            )
            cost = {
                "minutes": round((time.monotonic() - start) / 60, 2),
                # The largest process so far, in kilobytes on Linux.
                "peak_gigabytes": round(
                    resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2
                ),
            }
            (workdir / "cost.json").write_text(json.dumps(cost) + "\n")
        data = json.loads(metrics.read_text())
        runs.append([Row(**row) for row in data["baselines"] + data["rows"]])
        accuracies.append(data["judge_accuracy"])
        costs.append(json.loads((workdir / "cost.json").read_text()))
    target = Path(_JSON.value)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(_WORKDIR.value) / "0" / "samples.png", target.with_suffix(".png"))
    rows = in_order(aggregate(runs))
    accuracy = sum(accuracies) / len(accuracies)
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    print(format_table(rows))
    write_report(
        target.with_suffix(".html"),
        rows,
        [],
        {},
        accuracy,
        notes=[
            f"Mean and standard deviation over {len(runs)} seeds, each with its own split, "
            f"data generator, student and judge, on {machine}."
        ],
    )
    write_metrics(
        target,
        [row for row in rows if row.model in ("teacher", "student")],
        accuracy,
        baselines=[
            dataclasses.asdict(row) for row in rows if row.model not in ("teacher", "student")
        ],
        judge_accuracies=accuracies,
        costs=costs,
        machine=machine,
    )


if __name__ == "__main__":
    app.run(main)

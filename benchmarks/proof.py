"""A whole run over several seeds: `python -m benchmarks.proof --config=digits --seeds=3`.

Each seed has its own split of the pictures, data generator, samples, student and extractor. Writes
the mean of every row over the seeds, and which limits each seed met, to
`benchmarks/results/CONFIG.json` and, as a page, `CONFIG.html`, and the first seed's samples beside
it as `CONFIG.png`.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row, acceptance, aggregate, format_table, write_metrics

_CONFIG = flags.DEFINE_string("config", "digits", "Name of a config.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs, with seeds 0, 1, ...")
_WORKDIR = flags.DEFINE_string("workdir", "runs/proof", "Holds CONFIG/SEED.")


def cost_of(workdir: Path, config: str, seed: int) -> dict[str, float]:
    """Minutes and memory of a seed's run, which is run where it is not done."""
    kept = workdir / "cost.json"
    # Written last: for a run that was stopped and resumed, it is the cost of the rest.
    if not kept.exists():
        start = time.monotonic()
        command = [sys.executable, "-m", "ladd_jax.main", f"--config={config}"]
        subprocess.run(
            [*command, f"--config.seed={seed}", f"--workdir={workdir}"],
            check=True,
        )
        cost = {
            "minutes": round((time.monotonic() - start) / 60, 2),
            # The largest process so far, in kilobytes on Linux.
            "peak_gigabytes": round(
                resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2
            ),
        }
        kept.write_text(json.dumps(cost) + "\n")
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def limits(rows: list[Row]) -> list[dict[str, object]]:
    """What the student reached beside each limit, in every bucket."""
    return [
        {
            "bucket": bucket,
            "metric": bar.metric,
            "steps": bar.steps,
            "to": bar.to if bar.to_steps is None else f"{bar.to}, {bar.to_steps} steps",
            "limit": bar.limits,
            "value": round(value, 4),
            "met": bar.met(value),
        }
        for bucket, bar, value in acceptance(rows)
    ]


def main(_: list[str]) -> None:
    """Runs what is not done yet, then aggregates."""
    root = Path(_WORKDIR.value) / _CONFIG.value
    runs, costs = [], []
    for seed in range(_SEEDS.value):
        workdir = root / str(seed)
        costs.append(cost_of(workdir, _CONFIG.value, seed))
        data = json.loads((workdir / "metrics.json").read_text())
        runs.append([Row.from_dict(row) for row in data["rows"]])
    target = Path("benchmarks/results") / f"{_CONFIG.value}.json"
    shutil.copy(root / "0" / "samples.png", target.with_suffix(".png"))
    rows = aggregate(runs)
    print(format_table(rows))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    note = (
        f"Mean over {len(runs)} seeds with Student's t interval, each seed with its own split, "
        f"data generator, student and extractor, on {machine}."
    )
    write_report(target.with_suffix(".html"), rows, [], {}, notes=[note])
    write_metrics(target, rows, limits=[limits(run) for run in runs], costs=costs, machine=machine)


if __name__ == "__main__":
    app.run(main)

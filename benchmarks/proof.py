"""`python -m benchmarks.proof --config=digits --seeds=3`: a config's whole job with several seeds.

Each seed has its own split of the pictures, data generator, samples, student and extractor. Seeds
that are finished in `--workdir` are not run again.

Writes to `benchmarks/results`: `CONFIG.json` with the mean of every row over the seeds and the
limits that each seed met, `CONFIG.html` with the means as a page, and `CONFIG.png` with the first
seed's samples. CONFIG is the config's name without its arguments: `small` for
`--config=small:data=DIR`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row, acceptance, aggregate, format_table, write_metrics

_CONFIG = flags.DEFINE_string("config", "digits", "Name of a config, with its arguments.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of runs, with seeds 0, 1, ...")
_CHANGES = flags.DEFINE_multi_string("change", [], "A changed field, such as distil.steps=1500.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/proof", "Folder of the runs, CONFIG/SEED each.")


def run(workdir: Path, config: str, seed: int) -> list[Row]:
    """Runs a seed unless it is finished, and returns its rows."""
    if not (workdir / "metrics.json").exists():
        changes = [f"--config.{change}" for change in _CHANGES.value]
        subprocess.run(
            [sys.executable, "-m", "ladd_jax.main", f"--config={config}", f"--workdir={workdir}"]
            + [f"--config.seed={seed}", *changes],
            check=True,
        )
    data = json.loads((workdir / "metrics.json").read_text())
    return [Row.from_dict(row) for row in data["rows"]]


def limits(rows: list[Row]) -> list[dict[str, object]]:
    """Each limit and what the student reached, in every bucket."""
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
    """Runs the seeds that are not finished, then aggregates."""
    name = _CONFIG.value.partition(":")[0]
    root = Path(_WORKDIR.value) / name
    runs = [run(root / str(seed), _CONFIG.value, seed) for seed in range(_SEEDS.value)]
    target = Path("benchmarks/results") / f"{name}.json"
    shutil.copy(root / "0" / "samples.png", target.with_suffix(".png"))
    rows = aggregate(runs)
    print(format_table(rows))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    note = (
        f"Mean over {len(runs)} seeds with Student's t interval, each seed with its own split, "
        f"data generator, student and extractor, on {machine}. "
        + " ".join(f"{change}." for change in _CHANGES.value)
    )
    write_report(target.with_suffix(".html"), rows, [], {}, notes=[note])
    write_metrics(
        target,
        rows,
        changes=_CHANGES.value,
        limits=[limits(found) for found in runs],
        machine=machine,
    )


if __name__ == "__main__":
    app.run(main)

"""Recipes of distillation compared: `python -m benchmarks.recipes --study=digits [--seeds=0,1,2]`.

Recipes of a study distil the same data generator on the same samples. Its table is
`benchmarks/studies/STUDY.json`, with all that a recipe sets, so that a row means the same whatever
the config's defaults become. Every run's rows are added to `benchmarks/results/recipes_STUDY.json`
as it finishes; what is there is not run again.
"""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.studies import (
    base,
    change,
    folder,
    next_run,
    only_seeds_differ,
    read_table,
)
from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.config import typed
from ladd_jax.config.fields import to_dict
from ladd_jax.config.workdir import Places, settle
from ladd_jax.evaluation.rows import Row, acceptance, find
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import evaluate
from ladd_jax.stages.flow_matching import finetune, pretrain
from ladd_jax.stages.synthesize import synthesize
from ladd_jax.whole_files import write_text_whole

_STUDY = flags.DEFINE_string("study", "digits", "Name of the study's table.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the whole run, data generator included.")
_ONLY = flags.DEFINE_list("only", [], "Recipes to run; default: all of the table.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "runs/recipes",
    "Holds CONFIG/SEED/STUDY, or CONFIG_STUDY/SEED/STUDY where a study has data of its own.",
)
_JSON = flags.DEFINE_string("json", "", "Default: benchmarks/results/recipes_STUDY.json.")


def run(
    config: ConfigDict, name: str, changes: dict[str, Any], shared: Path, workdir: Path
) -> dict[str, Any]:
    """One recipe, and its rows.

    Args:
      config: what the recipe starts from.
      name: the recipe's.
      changes: its settings, by path.
      shared: holds the data generator and its samples; made where it is not there.
      workdir: the recipe's.
    """
    seed = config.seed
    started = typed(config)
    settle(shared, to_dict(started))
    encode(started, shared)
    pretrain(started, shared)
    synthesize(started, shared)
    (shared / "evaluation").mkdir(exist_ok=True)
    workdir.mkdir(parents=True, exist_ok=True)
    # Samples of the data generator, which no recipe changes.
    link = workdir / "evaluation"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(shared / "evaluation", workdir))
    change(config, changes)
    made = typed(config)
    settle(workdir, to_dict(made), Places(shared))
    finetune(made, workdir)
    distil(made, workdir)
    rows = evaluate(made, workdir)
    return {
        "recipe": name,
        "seed": seed,
        "changes": changes,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def line(rows: list[Row]) -> str:
    """What a run reached, in all buckets together."""
    parts = []
    for steps in (1, 2, 4):
        row = find(rows, "student", "all", steps)
        if row is None:
            continue
        parts.append(f"{steps}: fd {row.values['fd']:.3f} std {row.values['deviation']:.3f}")
    met = [bar.met(value) for bucket, bar, value in acceptance(rows) if bucket == "all"]
    return " | ".join(parts) + f" | {sum(met)} of {len(met)} limits"


def spread(done: list[dict[str, Any]]) -> str:
    """How far the seeds of one recipe are apart at one step."""
    found = [find([Row.from_dict(row) for row in run["rows"]], "student", "all", 1) for run in done]
    values = [row.values["fd"] for row in found]
    middle = float(np.median(values))
    return (
        f"{len(values)} runs, fd at 1 step: median {middle:.3f}, the others from "
        f"{min(values) / middle:.2f} to {max(values) / middle:.2f} times that"
    )


def main(_: list[str]) -> None:
    """Runs what the results do not have yet."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    study = _STUDY.value
    target = Path(_JSON.value or f"benchmarks/results/recipes_{study}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Recipes that differ in numbers that are no part of a program, such as a seed, share it.
    keep_programs("programs", Path(_WORKDIR.value))
    while True:
        # Both may have grown since the last look.
        told = read_table(study)
        done = json.loads(target.read_text()) if target.exists() else []
        found = next_run(told, done, _ONLY.value, list(map(int, _SEEDS.value)))
        if found is None:
            if only_seeds_differ(done):
                print(spread(done))
            return
        name, seed, changes = found
        root = folder(_WORKDIR.value, study, seed)
        made = run(base(told, seed), name, changes, root / "shared", root / study / name)
        done = json.loads(target.read_text()) if target.exists() else []
        write_text_whole(target, json.dumps([*done, made]) + "\n")
        print(name, seed, line([Row.from_dict(row) for row in made["rows"]]), flush=True)


if __name__ == "__main__":
    app.run(main)

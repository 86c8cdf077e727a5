"""`python -m benchmarks.heads --workdir=DIR [--means=0,-1,-2]`: what new heads would still see.

Trains new heads against the finished student of a run, which stays as it is, under several levels
of noise. If they get no further than the heads of the training did, noise hides what is still wrong
with the student; if they do, the heads of the training were too slow for it.

Needs a finished run with `distil.objective=ladd`. Writes a row for each level to `--json`.
"""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.result_files import write_result
from ladd_jax.config import objectives
from ladd_jax.config.fields import Config
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket
from ladd_jax.models.lora import LoRA
from ladd_jax.objectives import update_orders
from ladd_jax.objectives.ladd import LADD
from ladd_jax.objectives.passes import Heads
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.checkpoints import finished_student_step
from ladd_jax.stages.load import load_teacher
from ladd_jax.stages.sets import student_data
from ladd_jax.stages.students import load_student_weights

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Workdir of a finished run.")
_MEANS = flags.DEFINE_list("means", ["0", "-1", "-2"], "Values of distil.renoise_mean to try.")
_SLOPE = flags.DEFINE_float("slope", 0.0, "Value of distil.renoise_slope.")
_BUCKET = flags.DEFINE_string("bucket", "8x8", "Bucket of the records.")
_STEPS = flags.DEFINE_integer("steps", 1200, "Steps of the heads; the last third counts.")
_JSON = flags.DEFINE_string("json", "", "Where to write the rows.")

_BATCH = 32


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def step_of(ladd: LADD, teacher: Any) -> Callable[..., Any]:
    """A step that updates the heads as the fused step does, and leaves the student as it is."""

    def step(
        heads: Heads, params: Any, frozen: Any, key: jax.Array, batch: Any, number: jax.Array
    ) -> Any:
        state = dataclasses.replace(shapes, step=number, key=key, params=params)
        drawn, keys = ladd.draw(state, frozen, batch)
        x0_hat = ladd.predict(params, frozen, drawn)
        heads = update_orders.update_heads(ladd, heads, state, frozen, drawn, x0_hat, keys)
        verdict = ladd.judge(heads.params, number, frozen, drawn, x0_hat)
        heads = ladd.apply(heads, verdict.gradient)
        fakes, reals = verdict.statistics
        told = {
            "t": drawn.t,
            "accuracy": jnp.mean(verdict.accuracy, axis=(1, 2)),
            "loss": jnp.mean(fakes["loss"] + reals["loss"]),
        }
        return heads, told

    shapes = jax.eval_shape(ladd.init, jax.random.PRNGKey(0), teacher)
    return jax.jit(step)


def measure(
    config: Config, workdir: Path, bucket: Bucket, means: list[float], slope: float, steps: int
) -> list[dict[str, Any]]:
    """Trains new heads for each mean, and returns a row for each."""
    if config.distil.objective != "ladd":
        raise SystemExit(
            f"error: {workdir} was distilled with {config.distil.objective}, without heads on the "
            f"teacher: name a run of ladd"
        )
    mesh = make_mesh(config.mesh.sizes)
    shards = student_data(config, workdir)
    size = shards.sizes[bucket]
    records = shards.read(bucket, np.arange(size))
    finished = finished_student_step(config, workdir)
    student = load_student_weights(config, workdir, mesh, "ema", finished)
    teacher = load_teacher(config, workdir, mesh)
    rows = []
    for mean in means:
        # The student's weights are loaded as a whole network, adapters included.
        distil = dataclasses.replace(
            config.distil, renoise_mean=mean, renoise_slope=slope, accumulation=1,
            paired_weight=0.0, lora=LoRA(),
        )  # fmt: skip
        ladd = objectives.ladd(dataclasses.replace(config, distil=distil))
        params = ladd.critic.heads.init(jax.random.PRNGKey(0))
        heads = Heads(params, ladd.heads_optimizer.build().init(params))
        step, rng, key = step_of(ladd, teacher), np.random.default_rng(0), jax.random.PRNGKey(1)
        losses, accuracies = [], defaultdict(list)
        for number in range(steps):
            places = rng.choice(size, _BATCH, replace=False)
            batch = {
                "latents": records["latents"][places],
                "cond": {name: array[places] for name, array in records["cond"].items()},
            }
            frozen = {"teacher": teacher}
            heads, told = step(heads, student, frozen, key, batch, jnp.int32(number))
            if 3 * number >= 2 * steps:
                losses.append(float(told["loss"]))
                for t, accuracy in zip(told["t"].tolist(), told["accuracy"].tolist(), strict=True):
                    accuracies[t].append(accuracy)
        row = {
            "renoise_mean": mean,
            "renoise_slope": slope,
            "loss": _mean(losses),
            "accuracy": _mean(sum(accuracies.values(), [])),
            "accuracy_by_t": {t: _mean(found) for t, found in sorted(accuracies.items())},
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def main(_: list[str]) -> None:
    """Measures one run."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    workdir, bucket = Path(_WORKDIR.value), Bucket.parse(_BUCKET.value)
    means = [float(mean) for mean in _MEANS.value]
    rows = measure(read(workdir), workdir, bucket, means, _SLOPE.value, _STEPS.value)
    write_result(_JSON.value, {"bucket": bucket.name, "steps": _STEPS.value, "rows": rows})


if __name__ == "__main__":
    app.run(main)

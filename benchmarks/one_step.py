"""`python -m benchmarks.one_step --workdir=DIR`: where a student's steps go wrong.

Noises the data generator's samples to each of the student's times and predicts them in one step.
Then samples from noise through all times, and judges the prediction after each step. Both are done
with the student before and after distillation. Between the steps of a chain the consistency sampler
draws fresh noise; `--fresh=1,0` also samples without, as a deterministic sampler does.

Two other rows are for comparison: further samples of the generator, which are the floor, and as
many of the records that the student learns from, with the same prompts; a student that knew only
those by heart would score as they do. Where a prompt has no record, this row is left out. If the
student is held to paths of a network, the ends of these paths are judged too, for each solver of
`distil.consistency_solver`.

Needs a run that `evaluate` has finished, whose latents are pixels. `--json` adds the rows to a
file.
"""

import dataclasses
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.noising import noised, renoised
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.flow import predict_x0
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.models.base import GUIDANCE
from ladd_jax.models.families import family_of
from ladd_jax.objectives.consistency import SOLVERS, Consistency
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.checkpoints import finished_student_step
from ladd_jax.stages.judging import Samples, look_at, open_judge
from ladd_jax.stages.kept import directory_of
from ladd_jax.stages.load import load_frozen, load_unfinetuned
from ladd_jax.stages.sets import student_data
from ladd_jax.stages.students import load_student_weights
from ladd_jax.stages.subjects import subject_of

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Workdir of a finished run.")
_FRESH = flags.DEFINE_list(
    "fresh", ["1"], "Factors of the noise drawn anew between the steps of a chain, 0 to 1."
)
_JSON = flags.DEFINE_string("json", "", "File to add the rows to.")

_METRICS = ("fd", "alignment", "diversity", "deviation")


def read_samples(path: Path) -> Samples:
    """The samples that `evaluate` has kept."""
    with np.load(path) as data:
        return {Bucket.parse(name): data[name] for name in data.files if name != "fingerprint"}


def records_of(records: Shards, prompts: Mapping[Bucket, np.ndarray]) -> Samples | None:
    """A record for each prompt, or None if a prompt has none.

    Those of one prompt are all used once before any is used again.
    """
    found = {}
    for bucket, texts in prompts.items():
        stored = records.read(bucket, np.arange(records.sizes[bucket]))
        places = defaultdict(list)
        for place, prompt in enumerate(stored["prompt"]):
            places[prompt].append(place)
        if not places.keys() >= set(map(str, texts)):
            return None
        turns = {prompt: itertools.cycle(each) for prompt, each in places.items()}
        found[bucket] = stored[LATENTS][[next(turns[str(prompt)]) for prompt in texts]]
    return found


def rows_of(
    predict: Callable[[Samples, float], Samples],
    judge: Callable[[Samples], dict[str, float]],
    generator: Samples,
    times: tuple[float, ...],
    factors: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for a step from each time, and rows for each chain after each of its steps."""
    rows = [
        {"what": "one step", "t": t, **judge(predict(noised(generator, t, 0), t))} for t in times
    ]
    for fresh in factors:
        x = noised(generator, 1.0, 1)
        for step, t in enumerate(times, start=1):
            x0_hat = predict(x, t)
            place = {"what": "chain", "fresh": fresh, "t": t, "steps": step}
            rows.append(place | judge(x0_hat))
            if step < len(times):
                x = renoised(x, x0_hat, t, times[step], fresh, 1 + step)
    return rows


def rows_of_paths(
    consistency: Consistency,
    frozen: dict[str, Any],
    judge: Callable[[Samples], dict[str, float]],
    noise: Samples,
    conds: Mapping[Bucket, Any],
) -> list[dict[str, Any]]:
    """One row for each solver: where the paths that the student is held to end, from this noise."""
    rows = []
    for solver in SOLVERS:
        piece = jax.jit(dataclasses.replace(consistency, solver=solver).step_back)
        ends = {}
        for bucket, x in noise.items():
            for t, s in itertools.pairwise(consistency.levels):
                times = (np.full(len(x), level, np.float32) for level in (t, s))
                x = piece(frozen, x, *times, conds[bucket])
            ends[bucket] = np.asarray(x)
        pieces = len(consistency.levels) - 1
        rows.append({"model": "followed", "solver": solver, "pieces": pieces, **judge(ends)})
    return rows


def measure(config: Config, workdir: Path, factors: Sequence[float]) -> list[dict[str, Any]]:
    """The rows of a run: generator, records and paths, then the student untrained and trained."""
    mesh = make_mesh(config.mesh.sizes)
    extractor = open_judge(config, workdir, mesh)
    subjects = subject_of(config, workdir).buckets
    prompts = {bucket: found.prompts for bucket, found in subjects.items()}
    scale = np.float32(config.synthesize.guidance)
    # A network that takes no scale of guidance does not read it.
    conds = {
        bucket: found.cond | {GUIDANCE: np.full((len(found.prompts), 1), scale)}
        for bucket, found in subjects.items()
    }
    kept = directory_of(workdir)
    generator = read_samples(kept / f"generator_{config.synthesize.steps}.npz")
    reference = look_at(extractor, read_samples(kept / "reference.npz"), prompts)

    def program_of(architecture: Any) -> Callable[..., jax.Array]:
        network = family_of(config).backbone(architecture)
        return jax.jit(lambda params, x, t, cond: predict_x0(x, network(params, x, t, cond), t))

    def judge(samples: Samples) -> dict[str, float]:
        seen = look_at(extractor, samples, prompts)
        found = {name: METRICS[name].measure(seen, reference) for name in _METRICS}
        for bucket, part, other in zip(samples, seen, reference, strict=True):
            found[f"fd {bucket.name}"] = METRICS["fd"].measure([part], [other])
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    times = tuple(sorted(config.distil.timesteps, reverse=True))
    rows = [{"model": "generator", **judge(generator)}]
    data = student_data(config, workdir)
    if config.distil.data == "synthesized" and (same_prompts := records_of(data, prompts)):
        rows.append({"model": "records", **judge(same_prompts)})
    consistency = getattr(objectives.distillation(config), "consistency", None)
    if consistency is not None:
        frozen = load_frozen(config, workdir, mesh, [consistency.followed.tree], data)
        noise = noised(generator, 1.0, 1)
        rows += rows_of_paths(consistency, frozen, judge, noise, conds)
    step = finished_student_step(config, workdir)
    models = {
        "untrained": (
            load_unfinetuned(config, workdir, mesh),
            program_of(architectures.trained_start_architecture(config)),
        ),
        "student": (
            load_student_weights(config, workdir, mesh, "ema", step),
            program_of(architectures.student_architecture(config)),
        ),
    }
    for model, (params, program) in models.items():

        def predict(
            samples: Samples, t: float, params: Any = params, program: Any = program
        ) -> Samples:
            return {
                bucket: np.asarray(
                    program(params, x, np.full(len(x), t, np.float32), conds[bucket])
                )
                for bucket, x in samples.items()
            }

        rows += [
            {"model": model, **row} for row in rows_of(predict, judge, generator, times, factors)
        ]
    return rows


def main(_: list[str]) -> None:
    """Measures one run."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    factors = [float(fresh) for fresh in _FRESH.value]
    if not all(0 <= fresh <= 1 for fresh in factors):
        raise app.UsageError(f"--fresh={','.join(_FRESH.value)}: use numbers from 0 to 1")
    workdir = Path(_WORKDIR.value)
    rows = measure(read(workdir), workdir, factors)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if _JSON.value:
        target = Path(_JSON.value)
        found = json.loads(target.read_text()) if target.exists() else {}
        target.write_text(json.dumps(found | {workdir.name: rows}) + "\n")


if __name__ == "__main__":
    app.run(main)

"""The stage `evaluate`: metrics and report of a run."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ladd_jax.config import architectures
from ladd_jax.config.fields import Config, Evaluate, to_dict
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.evaluation.intervals import measure_with_interval
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.pictures import Grid, save_grid_png
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row, format_table, in_order, write_metrics
from ladd_jax.evaluation.seen import Seen
from ladd_jax.evaluation.strip import read_previews
from ladd_jax.models.base import Params
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.judging import Samples, look_at, open_judge, pictures_of, subjects_of
from ladd_jax.stages.load import (
    encoded,
    finished_student_step,
    held_out,
    load_generator,
    load_student_weights,
)
from ladd_jax.training.metrics import read_history

_LOG = logging.getLogger(__name__)

_SHOWN_SAMPLES = 3


class _Way(NamedTuple):
    """A way of making samples: one row of the table for each bucket, and one for all."""

    model: str
    steps: int
    guidance: float
    sampling: Sampling
    # Which noise: ways with the same one can be compared picture by picture.
    noise: int


def evaluate(config: Config, workdir: Path) -> list[Row]:
    """Samples data generator and student, judges them, writes `report.html`, `samples.png` and,
    last, `metrics.json`; measures nothing again where that is done with the same settings."""
    stage = config.evaluate
    metrics, report = workdir / "metrics.json", workdir / "report.html"
    settings = to_dict(config)["evaluate"]
    if metrics.exists():
        old = json.loads(metrics.read_text())
        if old.get("evaluate") == settings:
            _LOG.info("evaluate: done; remove %s to measure again", metrics)
            rows = [Row.from_dict(row) for row in old["rows"]]
            _show(rows, report)
            return rows
    mesh = make_mesh(config.mesh.sizes)
    held = Shards(held_out(workdir))
    start = load_generator(config, workdir, mesh)
    name = "student" if stage.student == "params" else stage.student
    student = load_student_weights(
        config, workdir, mesh, name, finished_student_step(config, workdir)
    )
    sampler = Sampler(
        family_of(config).backbone(architectures.student_architecture(config)),
        held.null,
        mesh,
        stage.batch_size,
    )
    subjects = {
        bucket: subjects_of(held, bucket, stage.samples, stage.per_prompt)
        for bucket in held.buckets
    }
    extractor = open_judge(config, workdir, mesh)
    look = functools.partial(look_at, extractor)
    prompts = {bucket: subject.prompts for bucket, subject in subjects.items()}
    ways = _ways(config)
    total = (len(ways) + 1) * sum(map(len, prompts.values()))
    hidden = jax.process_index() != 0
    with tqdm(total=total, desc="evaluate", unit="img", disable=hidden) as bar:

        def sample(way: _Way) -> Samples:
            params: Params = student if way.model == "student" else start
            return {
                bucket: sampler(
                    params,
                    seeds(config.seed + way.noise, bucket.height, bucket.width, np.arange(n)),
                    subject.cond,
                    (bucket.height, bucket.width, config.model.channels),
                    way.sampling,
                    bar.update,
                )
                for bucket, subject in subjects.items()
                for n in (len(subject.prompts),)
            }

        kept = workdir / "evaluation"
        fingerprint = _generator_fingerprint(config)
        reference = ways[0]._replace(noise=2)
        references = {
            "generator": look(
                _kept(kept / "reference", fingerprint, lambda: sample(reference)), prompts
            ),
            "real": look(*pictures_of(held)),
        }
        rows = _rows(
            _Way("data", 0, 1.0, ways[0].sampling, 0),
            look(*pictures_of(Shards(encoded(workdir)), {b: len(p) for b, p in prompts.items()})),
            references,
            stage,
            config.seed,
        )
        grids: list[Grid] = []
        for way in ways:
            make = functools.partial(sample, way)
            student_made = way.model == "student"
            samples = (
                make()
                if student_made
                else _kept(kept / f"{way.model}_{way.steps}", fingerprint, make)
            )
            rows += _rows(way, look(samples, prompts), references, stage, config.seed)
            title = f"{way.model}, {way.steps} step{'s' * (way.steps > 1)}"
            for bucket, images in samples.items():
                grids.append(_grid(title, bucket, images, prompts[bucket], stage))

    rows = in_order(rows)
    guidance = config.synthesize.guidance
    facts = {
        "student": f"{config.distil.steps} steps of LADD on {config.synthesize.samples} samples of "
        f"each bucket",
        "data generator": f"{config.pretrain.steps} steps of flow matching, guidance {guidance:g}",
        "network": f"{config.model.depth} blocks of width {config.model.width}",
        "seed": config.seed,
    }
    histories = {name: read_history(workdir / name) for name in ("pretrain", "distil")}
    if not hidden:
        previews = read_previews(workdir / "distil" / "previews")
        write_report(report, rows, grids, histories, facts, previews=previews)
        first = held.buckets[0].name
        save_grid_png(workdir / "samples.png", [grid for grid in grids if grid.bucket == first])
        write_metrics(metrics, rows, evaluate=settings)
    _show(rows, report)
    return rows


def _ways(config: Config) -> list[_Way]:
    """The data generator as for the student's data first, then all others."""
    stage, times = config.evaluate, tuple(config.distil.timesteps)
    guidance, shift = config.synthesize.guidance, config.synthesize.shift
    steps = config.synthesize.steps
    ways = [_Way("generator", steps, guidance, Sampling.generator(steps, guidance, shift), 1)]
    ways += [
        _Way("teacher", n, guidance, Sampling.generator(n, guidance, shift), 1)
        for n in stage.teacher_steps
    ]
    # The untrained student is the data generator: distillation must improve on it.
    for model in ("untrained", "student"):
        for n in stage.student_steps:
            # One program for all of them: compiling takes longer than steps that change nothing.
            sampling = Sampling.student(n, times).padded(max(stage.student_steps) + 1)
            ways.append(_Way(model, n, 1.0, sampling, 1))
    return ways


def _rows(
    way: _Way, samples: list[Seen], references: dict[str, list[Seen]], stage: Evaluate, seed: int
) -> list[Row]:
    """A row for each bucket, and one for all of them."""
    buckets = [f"{part.images.shape[1]}x{part.images.shape[2]}" for part in samples]
    selections = [
        ("all", slice(None)),
        *((name, slice(i, i + 1)) for i, name in enumerate(buckets)),
    ]
    rows = []
    for bucket, selection in selections:
        values, intervals = {}, {}
        for name in stage.metrics:
            metric = METRICS[name]
            measured = measure_with_interval(
                metric.measure,
                samples[selection],
                references[metric.reference][selection],
                stage.resamples,
                seed,
            )
            if measured is not None:
                values[name], intervals[name] = measured
        rows.append(Row(way.model, way.steps, way.guidance, bucket, values, intervals))
    return rows


def _generator_fingerprint(config: Config) -> str:
    """What the data generator's samples depend on."""
    fields = to_dict(config)
    stage = fields["evaluate"]
    parts = {name: fields[name] for name in ("seed", "weights", "data", "model", "pretrain")}
    parts["synthesize"] = {
        name: fields["synthesize"][name] for name in ("steps", "guidance", "shift")
    }
    parts["timesteps"] = fields["distil"]["timesteps"]
    parts["evaluate"] = {name: stage[name] for name in ("samples", "per_prompt")}
    return json.dumps(parts, sort_keys=True)


def _kept(path: Path, fingerprint: str, make: Callable[[], Samples]) -> Samples:
    """Samples of a file where they were made with the same settings, else made and kept there."""
    file = path.with_suffix(".npz")
    if file.exists():
        with np.load(file) as data:
            if str(data["fingerprint"]) == fingerprint:
                return {Bucket.parse(name): data[name] for name in data.files if name[0].isdigit()}
    samples = make()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        arrays: dict[str, Any] = {bucket.name: images for bucket, images in samples.items()}
        np.savez(partial, allow_pickle=False, fingerprint=np.array(fingerprint), **arrays)
        partial.rename(file)
    return samples


def _show(rows: list[Row], report: Path) -> None:
    if jax.process_index():
        return
    print(format_table(rows))
    print(f"\nreport: {report}")


def _grid(
    title: str, bucket: Bucket, images: np.ndarray, prompts: np.ndarray, stage: Evaluate
) -> Grid:
    """The first samples of evenly spread prompts."""
    names = list(dict.fromkeys(prompts.tolist()))
    count = min(stage.shown_prompts, len(names))
    shown = [names[i * len(names) // count] for i in range(count)]
    least = min(_SHOWN_SAMPLES, *(int(np.sum(prompts == name)) for name in shown))
    columns = [images[prompts == name][:least] for name in shown]
    return Grid(title, bucket.name, np.stack(columns), shown)

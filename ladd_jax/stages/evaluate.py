"""The stage `evaluate`: metrics and report of a run."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ladd_jax.config import architectures
from ladd_jax.config.fields import Config, Evaluate, to_dict
from ladd_jax.data import digits
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.evaluation.alignment import agreement
from ladd_jax.evaluation.diversity import diversity
from ladd_jax.evaluation.frechet import frechet_distance
from ladd_jax.evaluation.judge import Judge, train_judge
from ladd_jax.evaluation.pictures import Grid, save_grid_png
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row, format_table, in_order, write_metrics
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.encode import text_encoder
from ladd_jax.stages.load import (
    encoded,
    finished_student_step,
    load_generator,
    load_student_weights,
)
from ladd_jax.training.metrics import read_history

_LOG = logging.getLogger(__name__)

_SHOWN_SAMPLES = 3


class _Scores:
    """Rows of one judge: features of scans against those of the test split."""

    def __init__(self, judge: Judge, test: digits.Digits, buckets: list[Bucket], count: int):
        self._judge = judge
        self._references = {}
        for bucket in buckets:
            images, _, _ = digits.compose(test, bucket, count, seed=0)
            self._references[bucket] = self._scan_features(images, bucket)

    def _scan_features(self, images: np.ndarray, bucket: Bucket) -> np.ndarray:
        """Features of every scan in every picture `[n, k, F]`."""
        scans = digits.crops(images, bucket)
        features = self._judge.features(scans.reshape(-1, 8, 8, 1))
        return features.reshape(*scans.shape[:2], -1)

    def rows(
        self,
        model: str,
        steps: int,
        guidance: float,
        samples: dict[Bucket, tuple[np.ndarray, np.ndarray]],
    ) -> list[Row]:
        """A row for each bucket and one for all, of images and wanted labels `[n, k]`."""
        rows, features = [], {}
        for bucket, (images, wanted) in samples.items():
            features[bucket] = self._scan_features(images, bucket)
            scans = digits.crops(images, bucket)
            read = self._judge.labels(scans.reshape(-1, 8, 8, 1)).reshape(wanted.shape)
            _, groups = np.unique(wanted, axis=0, return_inverse=True)
            rows.append(
                Row(
                    model,
                    steps,
                    guidance,
                    bucket.name,
                    # A picture is one sample of the joint distribution of its scans.
                    frechet_distance(_joint(features[bucket]), _joint(self._references[bucket])),
                    agreement(read, wanted),
                    diversity(_joint(features[bucket]), groups.reshape(-1)),
                )
            )
        together = Row(
            model,
            steps,
            guidance,
            "all",
            # Over all buckets, scan by scan: their pictures have no common feature space.
            frechet_distance(
                *(
                    np.concatenate([_scans(sets[bucket]) for bucket in samples])
                    for sets in (features, self._references)
                )
            ),
            float(np.mean([row.agreement for row in rows])),
            float(np.mean([row.diversity for row in rows])),
        )
        return [together, *rows]


def _joint(features: np.ndarray) -> np.ndarray:
    return features.reshape(len(features), -1)


def _scans(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])


def evaluate(config: Config, workdir: Path) -> list[Row]:
    """Samples data generator and student, judges them, writes `report.html`, `samples.png` and,
    last, `metrics.json`; measures nothing again where that is done with the same settings."""
    stage, times = config.evaluate, tuple(config.distil.timesteps)
    metrics, report = workdir / "metrics.json", workdir / "report.html"
    settings = to_dict(config)["evaluate"]
    if metrics.exists():
        old = json.loads(metrics.read_text())
        if old.get("evaluate") == settings and "baselines" in old:
            _LOG.info("evaluate: done; remove %s to measure again", metrics)
            known = [Row(**row) for row in old["baselines"] + old["rows"]]
            _show(in_order(known), old["judge_accuracy"], report)
            return _split(known)[0]
    mesh = make_mesh(config.mesh.sizes)
    shards = Shards(encoded(workdir))
    buckets = _buckets(config)
    start = load_generator(config, workdir, mesh)
    name = "student" if stage.student == "params" else stage.student
    student = load_student_weights(
        config, workdir, mesh, name, finished_student_step(config, workdir)
    )
    sampler = Sampler(
        family_of(config).backbone(architectures.student_architecture(config)),
        shards.null,
        mesh,
        stage.batch_size,
    )
    encoder = text_encoder(config)
    train, test = digits.load(config.seed)
    judge = train_judge(train.images, train.labels, config.seed)
    scores = _Scores(judge, test, buckets, config.data.held_out_examples)

    guidance, shift = config.synthesize.guidance, config.synthesize.shift
    ways = [
        ("teacher", start, n, guidance, Sampling.generator(n, guidance, shift))
        for n in stage.teacher_steps
    ]
    # The untrained student is the data generator: distillation must improve on it.
    for model, params in (("student", student), ("untrained", start)):
        for n in stage.student_steps:
            # One program for all of them: compiling takes longer than steps that change nothing.
            sampling = Sampling.student(n, times).padded(max(stage.student_steps) + 1)
            ways.append((model, params, n, 1.0, sampling))

    prompts = {
        bucket: np.repeat(digits.prompts(bucket), count)
        for bucket, count in zip(buckets, stage.samples_per_prompt, strict=True)
    }
    wanted = {
        bucket: np.array([digits.prompt_labels(prompt) for prompt in prompts[bucket]])
        for bucket in buckets
    }
    rows: list[Row] = []
    grids: list[Grid] = []
    real = {}
    for bucket in buckets:
        real[bucket] = (digits.draw(train, bucket, wanted[bucket], seed=1), wanted[bucket])
    rows += scores.rows("data", 0, 1.0, real)
    first = jax.process_index() == 0
    with tqdm(
        total=len(ways) * sum(map(len, prompts.values())),
        desc="evaluate",
        unit="img",
        disable=not first,
    ) as bar:
        for model, params, steps, scale, sampling in ways:
            samples = {}
            for bucket in buckets:
                cond = encoder.encode(list(prompts[bucket]))
                # The same noise for every way of sampling, so that pictures can be compared.
                noise = seeds(
                    config.seed + 1, bucket.height, bucket.width, np.arange(len(prompts[bucket]))
                )
                images = sampler(
                    params,
                    noise,
                    cond,
                    (bucket.height, bucket.width, config.model.channels),
                    sampling,
                    bar.update,
                )
                samples[bucket] = (images, wanted[bucket])
                if model == "untrained" and steps > min(stage.student_steps):
                    continue  # The table has its numbers.
                title = f"{model}, {steps} step{'s' * (steps > 1)}"
                grids.append(_grid(title, bucket, images, prompts[bucket], stage))
            rows += scores.rows(model, steps, scale, samples)

    rows = in_order(rows)
    accuracy = judge.accuracy(test.images, test.labels)
    histories = {name: read_history(workdir / name) for name in ("pretrain", "distil")}
    facts = {
        "student": f"{config.distil.steps} steps of LADD on {config.synthesize.samples} samples of "
        f"each bucket",
        "data generator": f"{config.pretrain.steps} steps of flow matching, guidance {guidance:g}",
        "network": f"{config.model.depth} blocks of width {config.model.width}",
        "seed": config.seed,
    }
    models, baselines = _split(rows)
    if first:
        write_report(report, rows, grids, histories, accuracy, facts)
        save_grid_png(workdir / "samples.png", [g for g in grids if g.bucket == buckets[0].name])
        write_metrics(
            metrics,
            models,
            accuracy,
            baselines=[dataclasses.asdict(row) for row in baselines],
            evaluate=settings,
        )
    _show(rows, accuracy, report)
    return models


def _buckets(config: Config) -> list[Bucket]:
    return [Bucket.parse(name) for name in config.data.buckets]


def _split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of data generator ("teacher") and student, and those that they are compared with."""
    models = [row for row in rows if row.model in ("teacher", "student")]
    return models, [row for row in rows if row not in models]


def _show(rows: list[Row], accuracy: float, report: Path) -> None:
    if jax.process_index():
        return
    print(format_table(rows))
    print(f"\njudge: {accuracy:.1%} of held-out scans right\nreport: {report}")


def _grid(
    title: str, bucket: Bucket, images: np.ndarray, prompts: np.ndarray, stage: Evaluate
) -> Grid:
    """The first samples of evenly spread prompts."""
    names = list(dict.fromkeys(prompts.tolist()))
    # In steps of 37 places pairs show every digit first and second; singles in order.
    stride = 37 if len(names) > 10 else 1
    shown = [names[stride * i % len(names)] for i in range(min(stage.shown_prompts, len(names)))]
    columns = [images[prompts == name][:_SHOWN_SAMPLES] for name in shown]
    return Grid(title, bucket.name, np.stack(columns), shown)

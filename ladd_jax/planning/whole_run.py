"""What a whole run costs, stage by stage: hours of all chips, chip-hours, and bytes on disk.

The step of the planned training is the one that was compiled. The time of the other stages is that
of their model FLOPs at the same share of the chips' peak; the hosts read text and pictures
meanwhile.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ladd_jax.config import objectives
from ladd_jax.config.architectures import generator_architecture
from ladd_jax.config.fields import Config
from ladd_jax.config.pretraining import settings_of
from ladd_jax.config.record_shapes import record_shapes
from ladd_jax.data import sources
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.diffusion.sampling import Sampling
from ladd_jax.models.families import family_of
from ladd_jax.planning.job import Job
from ladd_jax.planning.stored_bytes import (
    checkpoint_bytes,
    latent_bytes,
    pictures_of_record,
    record_bytes,
)
from ladd_jax.planning.trainings import trainings_run
from ladd_jax.training.program import state_shapes

SOME_RECORDS = 1000
"""Number of records that stages are planned for where it is not known."""


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage takes.

    Attributes:
      stage: its name.
      amount: records that it writes, or steps of a training.
      unit: which of the two: `records` or `steps`.
      model_flops: multiplications and additions that its networks ask for.
      seconds: how long all chips are busy.
      bytes: size of what it leaves on disk; for a training its checkpoints, including the one that
        is being written.
    """

    stage: str
    amount: int
    unit: str
    model_flops: float
    seconds: float
    bytes: int

    def entry(self, chips: int) -> dict[str, Any]:
        """As JSON, with hours of all chips and chip-hours."""
        hours = self.seconds / 3600
        return {
            "stage": self.stage,
            self.unit: self.amount,
            "model_flops": self.model_flops,
            "hours": hours,
            "chip_hours": hours * chips,
            "bytes": self.bytes,
        }


def known_records(config: Config, given: int) -> int:
    """How many prompts or pictures a run has: what was given, or what its data say; else 0.

    Raises:
      NotFoundError: a file of prompts is named and is not there.
      UserError: the file is damaged.
    """
    return given or sources.count(config)


def run_costs(
    job: Job, buckets: Sequence[Bucket], batch_size: int, records: int, steps: Mapping[str, float]
) -> list[StageCost]:
    """The cost of each stage of the config, in order; `distil` is always among them.

    Args:
      job: the planned job.
      buckets: buckets that all records are in.
      batch_size: records in a global batch of the planned training; others have their config's.
      records: prompts or pictures.
      steps: seconds of a compiled step of the planned training by the bucket's name; what is
        missing is estimated.
    """
    config, shares = job.config, _shares(job.config, buckets)
    counts = {bucket: records * share for bucket, share in shares.items()}
    costs = []
    if "encode" in config.stages:
        costs.append(_encode(job, counts))
    trainings = trainings_run(config)
    # The trainings of `pretrain` and `prefer` come before the samples, which their results make.
    before = [name for name in trainings if name not in ("finetune", "distil")]
    costs += [_training(job, name, shares, batch_size, steps) for name in before]
    if "synthesize" in config.stages:
        costs.append(_synthesize(job, counts))
    after = trainings[len(before) :]
    return costs + [_training(job, name, shares, batch_size, steps) for name in after]


def _shares(config: Config, buckets: Sequence[Bucket]) -> dict[Bucket, float]:
    """Share of the records in each of the planned buckets."""
    named = dict(zip(config.data.buckets, config.data.bucket_weights, strict=False))
    weights = np.array([named.get(bucket.name, 0.0 if named else 1.0) for bucket in buckets])
    if not weights.sum():
        weights += 1
    return dict(zip(buckets, map(float, weights / weights.sum()), strict=True))


def _rate(job: Job) -> float:
    """Model FLOPs a second of all chips."""
    return job.chips * job.chip.bf16_flops * job.utilisation


def _encode(job: Job, counts: Mapping[Bucket, float]) -> StageCost:
    config = job.config
    flops, size = 0.0, 0.0
    pictures = pictures_of_record(config)
    released = _is_released(config) and not config.data.text
    for bucket, count in counts.items():
        if _is_released(config):
            text, picture = family_of(config).encoder_flops(
                bucket.height, bucket.width, config.data.text_length
            )
            flops += count * (text + picture * pictures)
        size += count * record_bytes(config, bucket, released=released)
    return _of_records(job, "encode", counts, flops, size)


def _is_released(config: Config) -> bool:
    """Whether encoders are those of released pipelines; the cost of others is negligible.

    They are where no network is trained from nothing. If `pretrain` is among the stages, it begins
    with a released base where latents of pictures are neither pixels nor made by an autoencoder
    that the config names: such a run can be planned before its weights are there, and is refused
    without them.
    """
    if config.weights or "pretrain" not in config.stages:
        return True
    data, are_pixels = config.data, config.model.channels in (1, 3)
    return sources.SOURCES[data.source].encoded and not data.autoencoder and not are_pixels


def _synthesize(job: Job, counts: Mapping[Bucket, float]) -> StageCost:
    config, stage = job.config, job.config.synthesize
    # Scales that each sample has of its own take a further pass each, even where they are 1.
    names = ("guidance", "image_guidance")
    guiding = dict.fromkeys(names[: len(stage.ranges)], 2.0)
    passes = Sampling.generator(**stage.sampling | guiding).passes
    architecture, forward = generator_architecture(config), family_of(config).forward_flops
    flops, size, made = 0.0, 0.0, {}
    for bucket, count in counts.items():
        made[bucket] = count = stage.samples or count
        cond = _cond(config, "pretrain", bucket)  # The data generator's.
        flops += count * passes * forward(architecture, bucket.height, bucket.width, cond)
        # The text is that of the encoded records.
        size += count * latent_bytes(config, bucket)
    return _of_records(job, "synthesize", made, flops, size)


def _of_records(
    job: Job, stage: str, counts: Mapping[Bucket, float], flops: float, size: float
) -> StageCost:
    amount = round(sum(counts.values()))
    return StageCost(stage, amount, "records", flops, flops / _rate(job), round(size))


def _training(
    job: Job,
    name: str,
    shares: Mapping[Bucket, float],
    batch_size: int,
    compiled: Mapping[str, float],
) -> StageCost:
    """A training; batch size and compiled steps are those of the planned one."""
    config, stage = job.config, settings_of(job.config, name)
    objective = job.objective
    if name != job.training:
        objective = objectives.of_training(config, name)
        batch_size, compiled = stage.batch_size, {}
    flops, seconds = 0.0, 0.0
    for bucket, share in shares.items():
        cond = _cond(config, name, bucket)
        step = batch_size * objectives.model_flops(config, objective, bucket, cond, name)
        flops += share * step
        seconds += share * compiled.get(bucket.name, step / _rate(job))
    size = checkpoint_bytes(config, state_shapes(objective))
    return StageCost(name, stage.steps, "steps", stage.steps * flops, stage.steps * seconds, size)


def _cond(config: Config, training: str, bucket: Bucket) -> dict[str, Any]:
    """The cond of a record of a training."""
    shapes = record_shapes(config, training, bucket)
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32)
        for name, shape in shapes.items()
        if name != LATENTS
    }

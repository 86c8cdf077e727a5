"""How a run's pictures are judged: which are looked at, and by which extractor."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import LATENTS, Shards
from ladd_jax.evaluation.extractors import EXTRACTORS, Given, open_extractor
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.seen import Seen
from ladd_jax.stages.load import encoded

Samples = dict[Bucket, np.ndarray]
"""Latents float32 `[n, H, W, C]` of each bucket."""


def open_judge(config: Config, workdir: Path, mesh: Mesh) -> Extractor:
    """The extractor that a config names, or the one of its source, or the run's own.

    Raises:
      UserError: its weights are not there or damaged, or there is nothing to train it on.
    """
    stage = config.evaluate
    return open_extractor(
        stage.extractor or (config.data.source if config.data.source in EXTRACTORS else "own"),
        Given(
            stage.extractor_weights,
            functools.partial(_training_pictures, workdir),
            config.seed,
            mesh,
        ),
    )


def look_at(
    extractor: Extractor, samples: Samples, prompts: Mapping[Bucket, np.ndarray]
) -> list[Seen]:
    """What an extractor makes of pictures, one `Seen` for each bucket."""
    seen = []
    for bucket, images in samples.items():
        features, alignment = extractor.look(images, list(prompts[bucket]))
        identity = np.arange(len(images))
        seen.append(Seen(images, prompts[bucket], features, alignment, identity))
    return seen


class Subjects(NamedTuple):
    """What samples of a bucket are made of.

    Attributes:
      prompts: str `[n]`, several samples of each prompt one after the other.
      cond: arrays `[n, ...]` by name.
    """

    prompts: np.ndarray
    cond: dict[str, np.ndarray]


def subjects_of(
    shards: Shards, bucket: Bucket, samples: int, per_prompt: int, records: int | None = None
) -> Subjects:
    """The first prompts of a bucket, each for as many samples as it takes.

    Args:
      shards: the set that the prompts are from.
      bucket: one of its buckets.
      samples: number of samples, at most; fewer where it is not a multiple of the prompts' number.
      per_prompt: samples of a prompt, at least.
      records: how many records to look at, the first ones; default: all.
    """
    size = shards.sizes[bucket]
    text = shards.read(bucket, np.arange(size if records is None else min(size, records)))
    names, first = np.unique(text["prompt"], return_index=True)
    first = np.sort(first)[: max(1, samples // per_prompt)]
    places = np.repeat(first, max(1, samples // len(first)))
    cond = {name: array[places] for name, array in text["cond"].items()}
    return Subjects(np.array(text["prompt"])[places], cond)


def pictures_of(
    shards: Shards, counts: dict[Bucket, int] | None = None
) -> tuple[Samples, dict[Bucket, np.ndarray]]:
    """The first pictures of every bucket, all of them by default, and their prompts."""
    images, prompts = {}, {}
    for bucket in shards.buckets:
        size = shards.sizes[bucket]
        records = shards.read(bucket, np.arange(min(size, counts[bucket]) if counts else size))
        images[bucket], prompts[bucket] = records[LATENTS], np.array(records["prompt"])
    return images, prompts


def _training_pictures(workdir: Path) -> dict[Bucket, tuple[np.ndarray, list[str]]]:
    images, prompts = pictures_of(Shards(encoded(workdir)))
    return {bucket: (images[bucket], list(prompts[bucket])) for bucket in images}

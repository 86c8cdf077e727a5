"""Scenes of coloured digits and prompts that describe them; latents are the pictures themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits, scenes
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.inpainting import with_holes

# Far from the seeds of runs, so that no training draws the same sequence of prompts and places as
# judges. The scans themselves are split by the run's own seed.
_HELD_OUT_SEED = 1_000_000


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` pictures of each bucket, from the training scans; see `data.sources`.

    `data.held_out_examples` of each, from the test scans, are held out.
    """
    del workdir
    return with_holes(config, *both_sides(config, buckets, _pictures))


def count(config: Any) -> int:
    """`data.examples` of each bucket; see `data.sources`."""
    return int(config.data.examples * len(config.data.buckets))


def both_sides(
    config: Any,
    buckets: Sequence[Bucket],
    make: Callable[[digits.Digits, Sequence[Bucket], int, int], Source],
) -> tuple[Source, Source]:
    """The records for training and those for judges, as `make` makes them.

    Args:
      config: the run's config.
      buckets: shapes of the latents.
      make: `make(scans, buckets, count, seed)` makes `count` records of each bucket.
    """
    data, (train, test) = config.data, digits.load(config.seed)
    held_out = make(test, buckets, data.held_out_examples, _HELD_OUT_SEED)
    return make(train, buckets, data.examples, config.seed), held_out


def _pictures(scans: digits.Digits, buckets: Sequence[Bucket], count: int, seed: int) -> Source:
    pictures = {bucket: scenes.compose(scans, bucket, count, seed) for bucket in buckets}
    return Source(
        {bucket: prompts for bucket, (_, prompts) in pictures.items()},
        {LATENTS: ArraySpec(("H", "W", 3))},
        lambda bucket, start, stop: {LATENTS: pictures[bucket][0][start:stop]},
    )

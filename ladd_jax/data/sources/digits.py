"""Scans of handwritten digits and prompts that name them; latents are the pictures themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.inpainting import with_holes


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` pictures of each bucket, of the training split; see `data.sources`.

    `data.held_out_examples` of each, from the test split, are held out; for single scans no more
    than the split has.
    """
    del workdir
    data, (train, test) = config.data, digits.load(config.seed)
    # The run's seed decides which scans are in the test split, but not how they are paired.
    held_out = _pictures(test, buckets, data.held_out_examples, seed=0, repeats=False)
    source = _pictures(train, buckets, data.examples, config.seed)
    return with_holes(config, source, held_out)


def count(config: Any) -> int:
    """`data.examples` of each bucket; see `data.sources`."""
    return int(config.data.examples * len(config.data.buckets))


def _pictures(
    scans: digits.Digits,
    buckets: Sequence[Bucket],
    count: int,
    seed: int,
    *,
    repeats: bool = True,
) -> Source:
    images, prompts = {}, {}
    for bucket in buckets:
        # Pictures that occur twice would look like a narrower distribution to a judge.
        capped = bucket == digits.SINGLE and not repeats
        number = min(count, len(scans.images)) if capped else count
        images[bucket], _, prompts[bucket] = digits.compose(scans, bucket, number, seed)
    arrays = {LATENTS: ArraySpec(("H", "W", 1))}
    return Source(
        prompts, arrays, lambda bucket, start, stop: {LATENTS: images[bucket][start:stop]}
    )

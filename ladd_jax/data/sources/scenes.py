"""Scenes of coloured digits and prompts that describe them; latents are the pictures themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits, scenes
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import LATENTS, ArraySpec
from ladd_jax.data.sources import Source


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` pictures of each bucket, of the training scans; see `data.sources`."""
    del workdir
    train, _ = digits.load(config.seed)
    return _source(train, buckets, config.data.examples, config.seed)


def _source(scans: digits.Digits, buckets: Sequence[Bucket], count: int, seed: int) -> Source:
    pictures = {bucket: scenes.compose(scans, bucket, count, seed) for bucket in buckets}
    return Source(
        {bucket: prompts for bucket, (_, prompts) in pictures.items()},
        {LATENTS: ArraySpec(("H", "W", 3))},
        lambda bucket, start, stop: {LATENTS: pictures[bucket][0][start:stop]},
    )

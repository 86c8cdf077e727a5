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
    images, prompts = {}, {}
    for bucket in buckets:
        images[bucket], prompts[bucket] = scenes.compose(
            train, bucket, config.data.examples, config.seed
        )
    arrays = {LATENTS: ArraySpec(("H", "W", 3))}
    return Source(
        prompts, arrays, lambda bucket, start, stop: {LATENTS: images[bucket][start:stop]}
    )

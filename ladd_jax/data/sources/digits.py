"""Scans of handwritten digits and prompts that name them; latents are the pictures themselves."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import LATENTS, ArraySpec
from ladd_jax.data.sources import Source


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` pictures of each bucket, of the training split; see `data.sources`.

    `data.held_out_examples` of each, of the test split, are held out.
    """
    del workdir
    data, (train, test) = config.data, digits.load(config.seed)
    # Judges see the same scans in every run, whatever the seed composes for training.
    held_out = _pictures(test, buckets, data.held_out_examples, seed=0)
    source = _pictures(train, buckets, data.examples, config.seed)
    return dataclasses.replace(source, held_out=held_out)


def _pictures(scans: digits.Digits, buckets: Sequence[Bucket], count: int, seed: int) -> Source:
    images, prompts = {}, {}
    for bucket in buckets:
        images[bucket], _, prompts[bucket] = digits.compose(scans, bucket, count, seed)
    arrays = {LATENTS: ArraySpec(("H", "W", 1))}
    return Source(
        prompts, arrays, lambda bucket, start, stop: {LATENTS: images[bucket][start:stop]}
    )

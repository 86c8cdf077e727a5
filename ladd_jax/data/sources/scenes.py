"""Scenes of coloured digits and prompts that describe them; latents are the pictures themselves."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits, scenes
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.inpainting import with_holes

# Far from the seeds of runs: no training has the prompts and places of judges in their order. The
# scans themselves are split by the run's own seed.
_HELD_OUT_SEED = 1_000_000


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` pictures of each bucket, of the training scans; see `data.sources`.

    `data.held_out_examples` of each, of the test scans, are held out.
    """
    del workdir
    data, (train, test) = config.data, digits.load(config.seed)
    held_out = _pictures(test, buckets, data.held_out_examples, _HELD_OUT_SEED)
    source = _pictures(train, buckets, data.examples, config.seed)
    held_out = with_holes(config, held_out, "held out")
    return dataclasses.replace(with_holes(config, source, "training"), held_out=held_out)


def count(config: Any) -> int:
    """`data.examples` of each bucket; see `data.sources`."""
    return int(config.data.examples * len(config.data.buckets))


def _pictures(scans: digits.Digits, buckets: Sequence[Bucket], count: int, seed: int) -> Source:
    pictures = {bucket: scenes.compose(scans, bucket, count, seed) for bucket in buckets}
    return Source(
        {bucket: prompts for bucket, (_, prompts) in pictures.items()},
        {LATENTS: ArraySpec(("H", "W", 3))},
        lambda bucket, start, stop: {LATENTS: pictures[bucket][0][start:stop]},
    )

"""Edits of scenes: latents are the edited pictures themselves, `channels` their sources."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits, scene_edits
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.models.base import CHANNELS

# As of scenes: no training has the instructions and places of judges in their order.
_HELD_OUT_SEED = 1_000_000


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` edits of each bucket, of the training scans; see `data.sources`.

    `data.held_out_examples` of each, of the test scans, are held out.
    """
    del workdir
    data, (train, test) = config.data, digits.load(config.seed)
    held_out = _edits(test, buckets, data.held_out_examples, _HELD_OUT_SEED)
    source = _edits(train, buckets, data.examples, config.seed)
    return dataclasses.replace(source, held_out=held_out)


def count(config: Any) -> int:
    """`data.examples` of each bucket; see `data.sources`."""
    return int(config.data.examples * len(config.data.buckets))


def _edits(scans: digits.Digits, buckets: Sequence[Bucket], count: int, seed: int) -> Source:
    edits = {bucket: scene_edits.compose(scans, bucket, count, seed) for bucket in buckets}
    spec = ArraySpec(("H", "W", 3))
    return Source(
        {bucket: instructions for bucket, (_, _, instructions) in edits.items()},
        {LATENTS: spec, CHANNELS: spec},
        lambda bucket, start, stop: {
            LATENTS: edits[bucket][0][start:stop],
            CHANNELS: edits[bucket][1][start:stop],
        },
    )

"""Edits of scenes: latents are the edited pictures themselves, and `channels` their sources."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data import digits, scene_edits
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source, scenes
from ladd_jax.models.base import CHANNELS


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """`data.examples` edits of each bucket, from the training scans; see `data.sources`.

    `data.held_out_examples` of each, from the test scans, are held out.
    """
    del workdir
    source, held_out = scenes.both_sides(config, buckets, _edits)
    return dataclasses.replace(source, held_out=held_out)


count = scenes.count


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

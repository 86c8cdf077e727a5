"""Prompts of a file, spread over the buckets, without latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.fill_buckets import fill_buckets


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The prompts of `data.path`, in shares of `data.bucket_weights`; see `data.sources`."""
    del workdir
    data = config.data
    prompts = read_prompt_set(data.path, data.column)
    weights = np.asarray(data.bucket_weights or [1.0] * len(buckets))
    # The bucket of a prompt depends on its place alone: more prompts can be added at the end.
    draws = np.random.default_rng(config.seed).random(len(prompts))
    places = np.searchsorted(np.cumsum(weights / weights.sum()), draws, side="right")
    places = np.minimum(places, len(buckets) - 1)
    sizes = {bucket: int((places == place).sum()) for place, bucket in enumerate(buckets)}
    homes = fill_buckets(config, sizes)
    split: dict[Bucket, list[str]] = {}
    for prompt, place in zip(prompts, places, strict=True):
        home = homes[buckets[place]]
        if home is not None:
            split.setdefault(home, []).append(prompt)
    return Source(split)

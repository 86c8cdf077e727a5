"""Prompts of a file, spread over the buckets, without latents."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.packed_texts import PackedTexts
from ladd_jax.data.prompt_sets import prompt_files, stream_prompt_set
from ladd_jax.data.sources import Source
from ladd_jax.data.sources.fill_buckets import fill_buckets


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The prompts of `data.path`, in shares of `data.bucket_weights`; see `data.sources`."""
    del workdir
    prompts = _read(config.data)
    # Nothing reads the prompts after the stage that opens them.
    _last.clear()
    return _split(config, buckets, prompts, tell=True)


def look(config: Any, buckets: Sequence[Bucket]) -> Source:
    """As `open_source`, without logging; see `data.sources`."""
    return _split(config, buckets, _read(config.data), tell=False)


def count(config: Any) -> int:
    """How many prompts there are; see `data.sources`."""
    return len(_read(config.data)) if config.data.path else 0


_last: dict[Any, PackedTexts] = {}
"""Prompts that were looked at and not opened yet, by the state of their files at that time."""


def _read(data: Any) -> PackedTexts:
    """The prompts of files; what was read for a look is kept for those who open them."""
    states = []
    for file in prompt_files(data.path):
        # If something is wrong with a file, reading it will say so.
        with contextlib.suppress(OSError):
            state = file.stat()
            states.append((str(file), state.st_size, state.st_mtime_ns))
    key = data.path, data.column, *states
    if key not in _last:
        _last.clear()
        _last[key] = PackedTexts(stream_prompt_set(data.path, data.column))
    return _last[key]


def _split(config: Any, buckets: Sequence[Bucket], prompts: PackedTexts, *, tell: bool) -> Source:
    data = config.data
    weights = np.asarray(data.bucket_weights or [1.0] * len(buckets))
    # A prompt's bucket depends on its place alone, so that prompts can be added at the end.
    draws = np.random.default_rng(config.seed).random(len(prompts))
    places = np.searchsorted(np.cumsum(weights / weights.sum()), draws, side="right")
    # int16 saves memory: there are few buckets and many prompts.
    places = np.minimum(places, len(buckets) - 1).astype(np.int16)
    sizes = {bucket: int((places == place).sum()) for place, bucket in enumerate(buckets)}
    homes = fill_buckets(config, sizes, tell=tell)
    numbers = {bucket: number for number, bucket in enumerate(buckets)}
    # For each bucket's number, the number of the bucket that its records go to.
    to = np.array([numbers[home] if (home := homes[b]) is not None else -1 for b in buckets])
    split = {bucket: np.flatnonzero(to[places] == numbers[bucket]) for bucket in buckets}
    unit = "line" if Path(data.path).suffix.lower() == ".txt" else "prompt"

    def where(bucket: Bucket, index: int) -> tuple[int, str]:
        number = int(split[bucket][index]) + 1
        return number, f"{data.path}: {unit} {number}"

    taken = {bucket: prompts.take(found) for bucket, found in split.items() if len(found)}
    return Source(taken, where=where)

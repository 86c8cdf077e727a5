"""`python -m ladd_jax.encode --config=FILE --workdir=DIR`: raw data to latent shards.

`data.source` says what the data are: `digits`, or with released `weights` a table of `prompts` or
a folder of `images`. Flags `--weights=...`, `--prompts=FILE` and `--images=DIR` set these fields.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.config.fields import Config
from ladd_jax.data import digits as sources
from ladd_jax.data.buckets import Bucket, nearest
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.prompts import read_prompts
from ladd_jax.data.records import Unreadable, open_images
from ladd_jax.data.shards import (
    Layout,
    Shard,
    finalize_together,
    is_complete,
    missing_shards,
    progress,
    write_shard,
)
from ladd_jax.models.random_text import TextEncoder
from ladd_jax.models.sd3.encoder_weights import load_autoencoder, load_text_encoders
from ladd_jax.models.sd3.text import SD3TextEncoder
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, process_mesh, replicated
from ladd_jax.parallel.processes import check_same
from ladd_jax.stages.load import encoded
from ladd_jax.weights.source import fetch_pipeline

_LOG = logging.getLogger(__name__)

CLIP_LENGTH = 77
"""Tokens of the context that are CLIP's; the others are T5's."""


def text_encoder(
    config: Config, mesh: Mesh | None = None, batch: int | None = None
) -> TextEncoder | SD3TextEncoder:
    """The text encoder of a config: that of its weights, else a random one.

    Args:
      config: of a run.
      mesh: of devices of this process, for encoders of weights; default: the config's.
      batch: prompts encoded at once by encoders of weights; default: the config's.
    """
    data = config.data
    if config.weights:
        return load_text_encoders(
            fetch_pipeline(config.weights),
            jnp.dtype(config.model.dtype),
            process_mesh(config.mesh.sizes) if mesh is None else mesh,
            t5_length=data.text_length - CLIP_LENGTH,
            batch=batch or data.text_batch_size,
        )
    return TextEncoder.random(
        seed=config.seed,
        length=data.text_length,
        width=data.text_width,
        layers=data.text_layers,
        heads=data.text_heads,
        pooled_width=data.pooled_width,
    )


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Raw data, in order.

    Attributes:
      prompts: of each bucket.
      channels: of the latents; 0 where there are none.
      latents: `latents(bucket, start, stop)` gives float32 `[n, H, W, C]` of those records.
    """

    prompts: Mapping[Bucket, Sequence[str]]
    channels: int = 0
    latents: Callable[[Bucket, int, int], np.ndarray] | None = None


def _digits(config: Config, buckets: list[Bucket], workdir: Path) -> _Raw:
    train, _ = sources.load(config.seed)
    images, prompts = {}, {}
    for bucket in buckets:
        images[bucket], _, prompts[bucket] = sources.compose(
            train, bucket, config.data.examples, config.seed
        )
    return _Raw(prompts, 1, lambda bucket, start, stop: images[bucket][start:stop])


def _prompts(config: Config, buckets: list[Bucket], workdir: Path) -> _Raw:
    data = config.data
    prompts = read_prompts(data.path, data.column)
    weights = np.asarray(data.bucket_weights or [1.0] * len(buckets))
    # The bucket of a prompt depends on its place alone: more prompts can be added at the end.
    draws = np.random.default_rng(config.seed).random(len(prompts))
    places = np.searchsorted(np.cumsum(weights / weights.sum()), draws, side="right")
    places = np.minimum(places, len(buckets) - 1)
    split = {
        bucket: [prompts[i] for i in np.flatnonzero(places == place)]
        for place, bucket in enumerate(buckets)
    }
    return _Raw({bucket: part for bucket, part in split.items() if part})


def _images(config: Config, buckets: list[Bucket], workdir: Path) -> _Raw:
    data = config.data
    images = open_images(data.path, data.column)
    listed = workdir / "unreadable.jsonl"
    unreadable = Unreadable(len(images), listed)
    places: dict[Bucket, list[int]] = {bucket: [] for bucket in buckets}
    prompts: dict[Bucket, list[str]] = {bucket: [] for bucket in buckets}
    hidden = jax.process_index() != 0
    # All are decoded once before any is encoded: how many there are decides the names of shards.
    for i in tqdm(range(len(images)), desc="encode: look", unit="img", disable=hidden):
        try:
            record = images[i]
            height, width, _ = decode_image(record.data).shape
        except ValueError as error:
            unreadable.add(images.keys[i], error)
            continue
        bucket = nearest(buckets, height, width)
        places[bucket].append(i)
        prompts[bucket].append(record.prompt)
    # One that only this process fails to read would shift what the others write.
    check_same("list of readable images", {bucket.name: part for bucket, part in places.items()})
    if not hidden:
        unreadable.write()
        if len(unreadable):
            _LOG.warning("%d unreadable images are left out: %s", len(unreadable), listed)

    autoencoder, params = load_autoencoder(fetch_pipeline(config.weights), jnp.float32)
    mesh = process_mesh(config.mesh.sizes)
    params = jax.device_put(params, replicated(mesh))
    size = -(-data.image_batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
    program = jax.jit(autoencoder.encode)

    def latents(bucket: Bucket, start: int, stop: int) -> np.ndarray:
        height, width = bucket.image_size(autoencoder.config.reduction)
        parts = []
        for first in range(start, stop, size):
            indices = places[bucket][first : min(first + size, stop)]
            pixels = np.stack([fit(decode_image(images[i].data), height, width) for i in indices])
            padded = np.resize(pixels, (size, *pixels.shape[1:]))
            encoded_part = program(params, jax.device_put(padded, batch_sharding(mesh)))
            parts.append(np.asarray(encoded_part)[: len(indices)])
        return np.concatenate(parts)

    used = {bucket: part for bucket, part in prompts.items() if part}
    return _Raw(used, autoencoder.config.latent_channels, latents)


_SOURCES = {"digits": _digits, "prompts": _prompts, "images": _images}


def encode(config: Config, workdir: Path) -> None:
    """Writes text, and latents where the data have images, as shards; goes on where it stopped."""
    data = config.data
    target = encoded(workdir)
    if is_complete(target):
        return
    buckets = [Bucket.parse(name) for name in data.buckets]
    raw = _SOURCES[data.source](config, buckets, workdir)
    encoder = text_encoder(config)
    layout = Layout(
        sizes={bucket: len(prompts) for bucket, prompts in raw.prompts.items()},
        records_per_shard=data.records_per_shard,
        channels=raw.channels,
        text_length=encoder.length,
        context_width=encoder.context_width,
        pooled_width=encoder.pooled_width,
        text_dtype=data.text_dtype,
    )
    missing = missing_shards(target, layout, jax.process_index(), jax.process_count())
    with progress("encode", layout, missing) as bar:
        for shard in missing:
            records = _records(raw, encoder, shard, data.text_batch_size)
            write_shard(target, layout, shard, records)
            bar.update(shard.stop - shard.start)
    report_cut(encoder)
    null_context, null_pooled = encoder.encode([""])
    finalize_together(target, layout, null_context[0], null_pooled[0])


def _records(
    raw: _Raw, encoder: TextEncoder | SD3TextEncoder, shard: Shard, batch: int
) -> Iterator[dict[str, Any]]:
    """The records of a shard, a batch of them in memory at a time."""
    for start in range(shard.start, shard.stop, batch):
        stop = min(start + batch, shard.stop)
        prompts = raw.prompts[shard.bucket][start:stop]
        arrays = dict(zip(("context", "pooled"), encoder.encode(prompts), strict=True))
        if raw.latents is not None:
            arrays["latents"] = raw.latents(shard.bucket, start, stop)
        for i, prompt in enumerate(prompts):
            yield {name: array[i] for name, array in arrays.items()} | {"prompt": prompt}


def report_cut(encoder: TextEncoder | SD3TextEncoder) -> None:
    """Warns of prompts that did not fit."""
    for name, count in getattr(encoder, "truncated", {}).items():
        if count:
            _LOG.warning("%d prompts are longer than %s reads and were cut", count, name)

"""Pictures with prompts, each as latents of the bucket that is nearest to its shape.

Latents are those of the autoencoder of `data.autoencoder` or of `weights`, and without either the
pixels themselves, grey or in colours as `model.channels` says.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ladd_jax.data.buckets import Bucket, choose_buckets, nearest
from ladd_jax.data.image_records import open_images
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.records import Records, Unreadable
from ladd_jax.data.shards import LATENTS, ArraySpec
from ladd_jax.data.sources import Source, is_held_out
from ladd_jax.data.sources.fill_buckets import fill_buckets
from ladd_jax.errors import UserError
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, process_mesh, replicated
from ladd_jax.parallel.processes import check_same

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A picture that can be read: its place in the source, and what is known of it."""

    place: int
    key: str
    height: int
    width: int
    prompt: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Pixels to latents: `encode` takes `[n, H, W, C]` of images in [-1, 1]."""

    reduction: int
    image_channels: int
    latent_channels: int
    encode: Callable[[np.ndarray], np.ndarray]


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The pictures of `data.path`; see `data.sources`.

    Without buckets a few are chosen for the pictures' aspects, of `data.resolution` squared pixels.
    Records say themselves whether they are held out, or else a share of `data.held_out` is, by
    their keys.

    Raises:
      NotFoundError: there are none.
      UserError: more of them cannot be read than `Unreadable` allows, no bucket fills a batch, or
        the autoencoder's latents do not have `model.channels`.
    """
    data = config.data
    images = open_images(
        data.path,
        data.column,
        image_column=data.image_column,
        split=data.split,
        subset=data.subset,
        stream=workdir / "streamed.arrow" if data.stream else None,
        limit=data.limit,
    )
    seen = _look(images, data, workdir)
    encoder = _encoder(config)
    if not buckets:
        aspects = np.array([record.width / record.height for record in seen])
        step = config.model.patch * encoder.reduction
        buckets = choose_buckets(
            aspects, data.resolution**2, step, data.max_buckets, encoder.reduction
        )
    shapes = [nearest(buckets, record.height, record.width) for record in seen]
    counts = Counter((shape, r.held_out) for shape, r in zip(shapes, seen, strict=True))
    sizes, apart = ({b: counts[b, held_out] for b in buckets} for held_out in (False, True))
    homes = fill_buckets(config, sizes, apart)
    parts: dict[bool, dict[Bucket, list[_Seen]]] = {False: {}, True: {}}
    left_out = Unreadable(len(seen), workdir / "left_out.jsonl", limit=1.0)
    for shape, record in zip(shapes, seen, strict=True):
        home = homes[shape]
        if home is None:
            left_out.add(record.key, f"bucket {shape.name} holds less than a batch")
        else:
            parts[record.held_out].setdefault(home, []).append(record)
    if jax.process_index() == 0:
        left_out.write()
    held_out = _source(images, parts[True], encoder) if parts[True] else None
    return dataclasses.replace(_source(images, parts[False], encoder), held_out=held_out)


def _look(images: Records, data: Any, workdir: Path) -> list[_Seen]:
    """Decodes all pictures once: how many there are decides the names of shards."""
    count = min(len(images), data.limit or len(images))
    listed = workdir / "unreadable.jsonl"
    unreadable = Unreadable(count, listed, data.unreadable)
    hidden = jax.process_index() != 0
    seen = []
    for i in tqdm(range(count), desc="encode: look", unit="img", disable=hidden):
        try:
            record = images[i]
            height, width, _ = decode_image(record.data).shape
        except ValueError as error:
            unreadable.add(images.keys[i], error)
            continue
        apart = record.held_out
        if apart is None:
            apart = is_held_out(record.key, data.held_out)
        seen.append(_Seen(i, record.key, height, width, record.prompt, apart))
    # One that only this process fails to read would shift what the others write.
    check_same("list of readable images", [(r.place, r.height, r.width) for r in seen])
    if not hidden:
        unreadable.write()
        if len(unreadable):
            _LOG.warning("%d unreadable images are left out: %s", len(unreadable), listed)
    if not seen:
        raise UserError(f"none of the {count} images can be read: {listed} says why")
    return seen


def _source(images: Records, part: dict[Bucket, list[_Seen]], encoder: _Encoder) -> Source:
    def read(bucket: Bucket, start: int, stop: int) -> dict[str, np.ndarray]:
        height, width = bucket.image_size(encoder.reduction)
        pixels = [
            fit(decode_image(images[record.place].data), height, width, encoder.image_channels)
            for record in part[bucket][start:stop]
        ]
        return {LATENTS: encoder.encode(np.stack(pixels))}

    prompts = {bucket: [record.prompt for record in records] for bucket, records in part.items()}
    return Source(prompts, {LATENTS: ArraySpec(("H", "W", encoder.latent_channels))}, read)


def _encoder(config: Any) -> _Encoder:
    place, channels = config.data.autoencoder or config.weights, config.model.channels
    if not place:
        return _Encoder(1, channels, channels, lambda pixels: pixels)
    autoencoder, params = family_of(config).load_autoencoder(place, jnp.float32)
    if autoencoder.latent_channels != channels:
        raise UserError(
            f"the autoencoder of {place} makes latents of {autoencoder.latent_channels} channels "
            f"and model.channels is {channels}: set it to theirs"
        )
    mesh = process_mesh(config.mesh.sizes)
    params = jax.device_put(params, replicated(mesh))
    size = -(-config.data.image_batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
    program = jax.jit(autoencoder.encode)

    def encode(pixels: np.ndarray) -> np.ndarray:
        latents = []
        for start in range(0, len(pixels), size):
            some = pixels[start : start + size]
            padded = np.resize(some, (size, *some.shape[1:]))
            encoded = program(params, jax.device_put(padded, batch_sharding(mesh)))
            latents.append(np.asarray(encoded)[: len(some)])
        return np.concatenate(latents)

    return _Encoder(autoencoder.reduction, 3, autoencoder.latent_channels, encode)

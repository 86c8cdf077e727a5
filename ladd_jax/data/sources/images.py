"""Pictures with prompts, each as latents of the bucket that is nearest to its shape."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ladd_jax.data.buckets import Bucket, nearest
from ladd_jax.data.image_records import Unreadable, open_images
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.shards import LATENTS, ArraySpec
from ladd_jax.data.sources import Source, is_held_out
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, process_mesh, replicated
from ladd_jax.parallel.processes import check_same

_LOG = logging.getLogger(__name__)

_Found = dict[Bucket, list[tuple[int, str]]]


def open_source(config: Any, buckets: Sequence[Bucket], workdir: Path) -> Source:
    """The pictures of `data.path`, encoded by the autoencoder of `weights`; see `data.sources`.

    Raises:
      UserError: more of them cannot be read than `Unreadable` allows.
    """
    data = config.data
    images = open_images(data.path, data.column)
    listed = workdir / "unreadable.jsonl"
    unreadable = Unreadable(len(images), listed)
    # Of each bucket the place and the prompt of its records, those for judges apart.
    found: dict[bool, _Found] = {held_out: {b: [] for b in buckets} for held_out in (False, True)}
    hidden = jax.process_index() != 0
    # All are decoded once before any is encoded: how many there are decides the names of shards.
    for i in tqdm(range(len(images)), desc="encode: look", unit="img", disable=hidden):
        try:
            record = images[i]
            height, width, _ = decode_image(record.data).shape
        except ValueError as error:
            unreadable.add(images.keys[i], error)
            continue
        part = found[is_held_out(record.key, data.held_out)]
        part[nearest(buckets, height, width)].append((i, record.prompt))
    # One that only this process fails to read would shift what the others write.
    check_same(
        "list of readable images",
        [{bucket.name: records for bucket, records in part.items()} for part in found.values()],
    )
    if not hidden:
        unreadable.write()
        if len(unreadable):
            _LOG.warning("%d unreadable images are left out: %s", len(unreadable), listed)

    autoencoder, params = family_of(config).load_autoencoder(config.weights, jnp.float32)
    mesh = process_mesh(config.mesh.sizes)
    params = jax.device_put(params, replicated(mesh))
    size = -(-data.image_batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
    program = jax.jit(autoencoder.encode)

    def source(part: _Found) -> Source:
        def read(bucket: Bucket, start: int, stop: int) -> dict[str, np.ndarray]:
            height, width = bucket.image_size(autoencoder.reduction)
            latents = []
            for first in range(start, stop, size):
                places = [place for place, _ in part[bucket][first : min(first + size, stop)]]
                pixels = [fit(decode_image(images[i].data), height, width) for i in places]
                padded = np.resize(np.stack(pixels), (size, height, width, 3))
                encoded = program(params, jax.device_put(padded, batch_sharding(mesh)))
                latents.append(np.asarray(encoded)[: len(places)])
            return {LATENTS: np.concatenate(latents)}

        prompts = {
            bucket: [prompt for _, prompt in records] for bucket, records in part.items() if records
        }
        arrays = {LATENTS: ArraySpec(("H", "W", autoencoder.latent_channels))}
        return Source(prompts, arrays, read)

    held_out = source(found[True])
    return dataclasses.replace(
        source(found[False]), held_out=held_out if held_out.prompts else None
    )

"""Pictures of a source with a hole in each, in the form that networks which fill holes read.

h w latent grid, C channels of a latent, H W picture, r pixels on a side of a latent pixel.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.joined import JOINED
from ladd_jax.data.masks import draw_mask, reduced
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.sources import Source
from ladd_jax.models.base import CHANNELS


def masked(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pictures `[n, H, W, C]` in [-1, 1] with their holes, bool `[n, H, W]`, in middle grey."""
    return np.where(masks[..., None], np.float32(0), pixels)


def inpainting_channels(masks: np.ndarray, latents: np.ndarray, reduction: int) -> np.ndarray:
    """The channels that are joined to x_t, in diffusers' order: the mask, then the masked picture.

    Args:
      masks: bool `[n, H, W]`, true where pictures are to be filled.
      latents: latents of the masked pictures, `[n, h, w, C]`.
      reduction: r.

    Returns:
      float32 `[n, h, w, 1 + C]`.
    """
    small = np.stack([reduced(mask, reduction) for mask in masks])
    return np.concatenate([small[..., None], latents], axis=-1, dtype=np.float32)


def record_masks(
    config: Any, keys: Sequence[str], height: int, width: int, reduction: int
) -> np.ndarray:
    """The masks of records, bool `[n, H, W]`, each drawn from the record's key."""
    shares = config.data.mask_shares
    return np.stack([draw_mask(config.seed, key, height, width, reduction, shares) for key in keys])


def with_holes(config: Any, source: Source, held_out: Source) -> Source:
    """One source from two whose latents are pictures; with holes and joined channels if the run
    fills holes.

    Args:
      config: the run's config.
      source: records for training.
      held_out: records for judges.
    """
    if config.data.joined == "inpaint":
        source, held_out = _holed(config, source, "training"), _holed(config, held_out, "held out")
    return dataclasses.replace(source, held_out=held_out)


def _holed(config: Any, source: Source, part: str) -> Source:
    """A source with a hole in each picture.

    Args:
      config: the run's config.
      source: the source.
      part: a name that tells its records from records of the same number in the other part.
    """
    joined = JOINED[config.data.joined].channels(int(source.arrays[LATENTS].shape[-1]))
    read: Callable[[Bucket, int, int], dict[str, np.ndarray]] = source.read

    def read_with_holes(bucket: Bucket, start: int, stop: int) -> dict[str, np.ndarray]:
        arrays = read(bucket, start, stop)
        keys = [f"{part} {bucket.name}/{index}" for index in range(start, stop)]
        masks = record_masks(config, keys, bucket.height, bucket.width, 1)
        held = masked(arrays[LATENTS], masks)
        return arrays | {CHANNELS: inpainting_channels(masks, held, 1)}

    arrays = {**source.arrays, CHANNELS: ArraySpec(("H", "W", joined))}
    return dataclasses.replace(source, arrays=arrays, read=read_with_holes)

"""Holes of held-out pictures: fillings are judged in the whole picture, and in the hole alone.

n pictures, h w latent grid, H W picture, C channels.
"""

from typing import NamedTuple

import numpy as np

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import enlarged
from ladd_jax.models.base import CHANNELS
from ladd_jax.stages.subjects import Subject


class Holes(NamedTuple):
    """Holes of the pictures that samples of a bucket complete.

    Attributes:
      masks: bool `[n, h, w]`, true where a picture is to be filled.
      latents: latents of the whole pictures, `[n, h, w, C]`.
    """

    masks: np.ndarray
    latents: np.ndarray


def holes_of(config: Config, subject: Subject) -> dict[Bucket, Holes]:
    """The holes that a run is judged on; empty if it does not fill holes."""
    if config.data.joined != "inpaint":
        return {}
    return {
        bucket: Holes(subjects.cond[CHANNELS][..., 0] > 0.5, subjects.latents)
        for bucket, subjects in subject.buckets.items()
        if subjects.latents is not None
    }


def completed(samples: np.ndarray, wholes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Samples with the known pixels put back.

    Args:
      samples: the samples, `[n, H, W, C]`.
      wholes: the whole pictures that they complete, `[n, H, W, C]`.
      masks: bool `[n, h, w]`, true in the hole; h and w divide H and W.
    """
    return np.where(_enlarged(masks, samples)[..., None], samples, wholes)


def errors(samples: np.ndarray, wholes: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squared errors, `[n]` each, of samples in the hole and around it.

    The error around the hole is taken before known pixels are put back. Takes the arguments of
    `completed`.
    """
    inside = _enlarged(masks, samples)
    squares = np.mean(np.square(samples.astype(np.float64) - wholes), axis=-1)

    def mean(where: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(squares * where, axis=(1, 2)) / np.sum(where, axis=(1, 2)))

    return {"masked": mean(inside), "known": mean(~inside)}


def _enlarged(masks: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    factor = pictures.shape[1] // masks.shape[1]
    return np.stack([enlarged(mask, factor) for mask in masks])

"""Converts pictures to latents and back, by an autoencoder or, if latents are pixels, by scaling.

h w latent grid, C channels, H W picture.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import enlarged, fit
from ladd_jax.errors import NotFiniteError, UserError
from ladd_jax.models.families import Family

_PIXELS = 8
"""Pixels per side of a latent pixel if latents are pixels, so that pictures are shown enlarged."""

Decoder = Callable[[np.ndarray], np.ndarray]
"""Turns one latent `[h, w, C]` into the pixels of its bucket, `[H', W', 1 or 3]` in [-1, 1]."""

Fit = Callable[[np.ndarray, Bucket], np.ndarray]
"""Turns a picture uint8 `[H, W, 3]` of any size into the pixels of a bucket, `[H', W', 1 or 3]` in
[-1, 1]; it is cropped to the bucket's aspect."""

Encoder = Callable[[np.ndarray], np.ndarray]
"""Turns the pixels of a bucket into their latent `[h, w, C]`."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Converts between pictures and latents.

    Attributes:
      reduction: side of a latent pixel in pixels of the picture.
      pixels_of: turns a latent into the pixels of its bucket.
      fit: turns a picture into the pixels of a bucket.
      latents_of: turns the pixels of a bucket into a latent.
      pixels: side of a latent pixel in pixels of a bucket, which is less than `reduction` if
        pictures are shown enlarged.
    """

    reduction: int
    pixels_of: Decoder
    fit: Fit
    latents_of: Encoder
    pixels: int

    def shown(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of a bucket, or a mask of them, enlarged to the size of its pictures."""
        factor = self.reduction // self.pixels
        return pixels if factor == 1 else enlarged(pixels, factor)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Turns a latent `[h, w, C]` into its picture `[H, W, 1 or 3]` in [-1, 1].

        Raises:
          NotFiniteError: the picture has values that are not finite, which would show as grey.
        """
        picture = self.shown(self.pixels_of(latents))
        broken = np.count_nonzero(~np.isfinite(picture))
        if broken:
            raise NotFiniteError(
                f"{broken} of the {picture.size} values of a picture are not finite: check the "
                f"network's weights and what is added to them, or let it compute in float32"
            )
        return picture

    def encode(self, picture: np.ndarray, bucket: Bucket) -> np.ndarray:
        """Turns a picture uint8 `[H, W, 3]` of any size into the latent `[h, w, C]` of a bucket."""
        return self.latents_of(self.fit(picture, bucket))


def of_autoencoder(kind: Family, weights: str) -> Pictures:
    """The conversion by a pipeline's autoencoder.

    Args:
      kind: the pipeline's family.
      weights: the pipeline's folder or repository.

    Raises:
      NotFoundError: the autoencoder is not there.
      UserError: the autoencoder is damaged.
    """
    autoencoder, params = kind.load_autoencoder(weights, jnp.float32)
    decoded, encoded = jax.jit(autoencoder.decode), jax.jit(autoencoder.encode)

    def decode(latents: np.ndarray) -> np.ndarray:
        return np.asarray(decoded(params, latents[None])[0])

    def fitted(picture: np.ndarray, bucket: Bucket) -> np.ndarray:
        return fit(picture, *bucket.image_size(autoencoder.reduction))

    def encode(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(encoded(params, pixels[None])[0])

    return Pictures(autoencoder.reduction, decode, fitted, encode, autoencoder.reduction)


def of_pixels(channels: int) -> Pictures:
    """The conversion for latents that are pixels of the picture, which is shown enlarged.

    Args:
      channels: C, 1 for grey or 3 for colours.
    """

    def fitted(picture: np.ndarray, bucket: Bucket) -> np.ndarray:
        if channels not in (1, 3):
            raise UserError(
                f"latents have {channels} channels and a picture has 1 or 3: leave the picture out"
            )
        return fit(picture, *bucket.image_size(1), channels)

    return Pictures(_PIXELS, lambda latents: latents, fitted, lambda pixels: pixels, 1)


def pictures_of_run(config: Any, kind: Family) -> Pictures:
    """The conversion between a run's latents and pictures.

    Args:
      config: the run's config.
      kind: the family of its networks.

    Raises:
      NotFoundError: its autoencoder is not there.
      UserError: its autoencoder is damaged.
    """
    place = config.autoencoder
    return of_autoencoder(kind, place) if place else of_pixels(config.model.channels)

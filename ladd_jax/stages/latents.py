"""Pictures to latents and back: by an autoencoder, or as they are where latents are the picture.

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
"""On a side of a latent pixel where latents are the picture."""

Decoder = Callable[[np.ndarray], np.ndarray]
"""From one latent `[h, w, C]` to the pixels of its bucket, `[H', W', 1 or 3]` in [-1, 1]."""

Fit = Callable[[np.ndarray, Bucket], np.ndarray]
"""From a picture uint8 `[H, W, 3]` of any size to the pixels of a bucket, `[H', W', 1 or 3]` in
[-1, 1]; what does not fit the bucket's aspect is cropped."""

Encoder = Callable[[np.ndarray], np.ndarray]
"""From the pixels of a bucket to their latent `[h, w, C]`."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What latents are in pictures.

    Attributes:
      reduction: pixels on a side of a latent pixel.
      pixels_of: latents to the pixels of a bucket.
      fit: pictures to the pixels of a bucket.
      latents_of: pixels of a bucket to latents.
      pixels: of these, pixels on a side of a latent pixel: fewer than `reduction` where pictures
        are shown enlarged.
    """

    reduction: int
    pixels_of: Decoder
    fit: Fit
    latents_of: Encoder
    pixels: int

    def shown(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of a bucket, or a mask of them, as large as its pictures are."""
        factor = self.reduction // self.pixels
        return pixels if factor == 1 else enlarged(pixels, factor)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """A latent `[h, w, C]` to its picture `[H, W, 1 or 3]` in [-1, 1].

        Raises:
          NotFiniteError: the picture has values that are not finite, which would be grey.
        """
        picture = self.shown(self.pixels_of(latents))
        broken = np.count_nonzero(~np.isfinite(picture))
        if broken:
            raise NotFiniteError(
                f"{broken} of the {picture.size} values of a picture are not finite: look at the "
                f"weights of the network and what is added to them, or let it compute in float32"
            )
        return picture

    def encode(self, picture: np.ndarray, bucket: Bucket) -> np.ndarray:
        """A picture uint8 `[H, W, 3]` of any size to the latent `[h, w, C]` of a bucket."""
        return self.latents_of(self.fit(picture, bucket))


def of_autoencoder(kind: Family, weights: str) -> Pictures:
    """Latents of the autoencoder of a pipeline.

    Args:
      kind: its family.
      weights: the pipeline's place.

    Raises:
      NotFoundError: it is not there.
      UserError: it is damaged.
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
    """Latents that are the picture, which is shown enlarged.

    Args:
      channels: C, 1 for grey or 3 for colours.
    """

    def fitted(picture: np.ndarray, bucket: Bucket) -> np.ndarray:
        if channels not in (1, 3):
            raise UserError(
                f"the latents have {channels} channels and a picture 1 or 3: leave the picture out"
            )
        return fit(picture, *bucket.image_size(1), channels)

    return Pictures(_PIXELS, lambda latents: latents, fitted, lambda pixels: pixels, 1)


def pictures_of_run(config: Any, kind: Family) -> Pictures:
    """Latents of a run.

    Args:
      config: its config.
      kind: the family of its networks.

    Raises:
      NotFoundError: its autoencoder is not there.
      UserError: its autoencoder is damaged.
    """
    place = config.autoencoder
    return of_autoencoder(kind, place) if place else of_pixels(config.model.channels)

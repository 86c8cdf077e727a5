"""A small pair of encoders that embeds pictures and their captions in one space.

B batch, H W picture, C channels, W words, F features.
"""

import itertools
import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ladd_jax.models.base import Model, param
from ladd_jax.models.classifier import Convolution
from ladd_jax.models.layers import Linear

TABLE = 4096
"""Rows of the table of words; words with the same hash share a row."""

_GRID = 2


def terms(caption: str) -> list[str]:
    """The words of a caption in order, each followed by its pair with the next word.

    Pairs preserve the order of words, which for example distinguishes "left of" and "right of".
    """
    words = re.findall(r"\w+", caption.lower())
    pairs = [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
    return [term for both in itertools.zip_longest(words, pairs) for term in both if term]


def word_ids(captions: Sequence[str], length: int) -> np.ndarray:
    """The first `terms` as rows of the table: int32 `[n, length]`, padded with 0."""
    ids = np.zeros((len(captions), length), np.int32)
    for row, caption in zip(ids, captions, strict=True):
        found = [1 + zlib.crc32(term.encode()) % (TABLE - 1) for term in terms(caption)][:length]
        row[: len(found)] = found
    return ids


class ImageText(nnx.Module):
    """Three convolutions, each of which halves the sides, and a bag of words."""

    def __init__(self, channels: int, width: int, features: int, *, rngs: nnx.Rngs):
        sizes = [channels, width, 2 * width, 4 * width]
        self.convolutions = nnx.List(
            [Convolution(a, b, rngs=rngs) for a, b in zip(sizes, sizes[1:], strict=False)]
        )
        options = {"rngs": rngs, "dtype": jnp.float32, "param_dtype": jnp.float32}
        self.dense = Linear(_GRID**2 * sizes[-1], features, (None, None), **options)
        self.project = Linear(features, features, (None, None), **options)
        self.words = param(
            rngs, (TABLE, features), initializers.normal(0.3), (None, None), jnp.float32
        )
        self.project_text = Linear(features, features, (None, None), **options)
        self.scale = param(rngs, (), initializers.constant(2.3), (), jnp.float32)

    def image(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features in [-1, 1], and embeddings of length 1, float32 `[B, F]` each.

        Args:
          images: float32 `[B, H, W, C]` in [-1, 1], H and W 8 or more.
        """
        x = images
        for place, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if place < 2:
                x = nnx.avg_pool(x, (2, 2), (2, 2))
        b, _, _, d = x.shape
        # Pooling to a coarse grid preserves left and right in pictures of every shape.
        pooled = jax.image.resize(x, (b, _GRID, _GRID, d), "linear", antialias=True)
        features = jnp.tanh(self.dense(pooled.reshape(b, -1)))
        return features, _unit(self.project(features))

    def text(self, ids: jax.Array) -> jax.Array:
        """Embeddings of length 1, float32 `[B, F]`, of captions as rows of words, int `[B, W]`."""
        there = (ids > 0).astype(jnp.float32)[..., None]
        bag = jnp.sum(self.words[...][ids] * there, 1) / jnp.sqrt(1 + jnp.sum(there, 1))
        return _unit(self.project_text(jnp.tanh(bag)))

    def logits(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """Scaled cosines of every picture with every caption, float32 `[B, B]`."""
        return jnp.exp(self.scale[...]) * self.image(images)[1] @ self.text(ids).T

    def __call__(self, images: jax.Array, ids: jax.Array) -> jax.Array:
        """See `logits`."""
        return self.logits(images, ids)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-8)


def image_text(channels: int, width: int = 24, features: int = 64) -> Model:
    """The network as a function of its parameters.

    Args:
      channels: C.
      width: channels of the first convolution; each has twice as many as the one before.
      features: F.
    """
    return Model(lambda rngs: ImageText(channels, width, features, rngs=rngs))

"""A small convolutional classifier of 8x8 scans, which judges the digits demo."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, param
from ladd_jax.models.heads import convolve
from ladd_jax.models.layers import Linear


class Convolution(nnx.Module):
    """3 x 3, padded to the same size, then ReLU."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        shape = (3, 3, inputs, outputs)
        self.kernel = param(rngs, shape, initializers.he_normal(), (None,) * 4, jnp.float32)
        self.bias = param(rngs, (outputs,), initializers.zeros, (None,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(convolve(x, self.kernel[...]) + self.bias[...])


class Classifier(nnx.Module):
    """Two convolutions at 8x8, one at 4x4, and a dense layer of bounded features.

    Features are bounded so that one strange sample cannot dominate a distance between sets.
    """

    def __init__(self, width: int, features: int, classes: int, *, rngs: nnx.Rngs):
        self.convolution1 = Convolution(1, width, rngs=rngs)
        self.convolution2 = Convolution(width, width, rngs=rngs)
        self.convolution3 = Convolution(width, 2 * width, rngs=rngs)
        options = {"rngs": rngs, "dtype": jnp.float32, "param_dtype": jnp.float32}
        self.dense = Linear(16 * 2 * width, features, (None, None), **options)
        self.out = Linear(features, classes, (None, None), **options)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of the penultimate layer, in [-1, 1], and logits.

        Args:
          images: float32 `[B, 8, 8, 1]` in [-1, 1].

        Returns:
          float32 `[B, features]` and `[B, classes]`.

        Raises:
          UserError: the images are not 8x8 with one channel.
        """
        if images.shape[1:] != (8, 8, 1):
            raise UserError(f"images of shape {images.shape}: the classifier reads [B, 8, 8, 1]")
        x = self.convolution2(self.convolution1(images))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = self.convolution3(x)
        features = jnp.tanh(self.dense(x.reshape(len(x), -1)))
        return features, self.out(features)


def classifier(width: int = 24, features: int = 64, classes: int = 10) -> Model:
    """The network as a function of its parameters.

    Args:
      width: channels of the first two convolutions; the third has twice as many.
      features: width of the penultimate layer.
      classes: number of logits.
    """
    return Model(lambda rngs: Classifier(width, features, classes, rngs=rngs))

"""The Inception-v3 that Fréchet inception distances are measured with.

This is TensorFlow's network of 2015-12-05 (Szegedy et al. 2015), as used by FID, pytorch-fid and
torch-fidelity. It differs from the published one: average pooling does not count places beyond the
border, and the last block pools by the maximum where similar blocks use the mean. Layers have the
names of pytorch-fid's weights.

B batch, H W pictures, h w grid, I O channels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, param

SIDE = 299
"""Rows and columns that every picture is resized to."""

FEATURES = 2048
"""Width of the last pooling layer."""


class _Convolution(nnx.Module):
    """Convolution, batch norm with the stored statistics, and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int] = 1,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: str = "SAME",
    ):
        height, width = (size, size) if isinstance(size, int) else size
        shape = (height, width, inputs, outputs)
        self.kernel = param(rngs, shape, initializers.he_normal(), (None,) * 4, jnp.float32)
        ones, zeros = initializers.ones, initializers.zeros
        self.scale = param(rngs, (outputs,), ones, (None,), jnp.float32)
        self.bias = param(rngs, (outputs,), zeros, (None,), jnp.float32)
        self.mean = param(rngs, (outputs,), zeros, (None,), jnp.float32)
        self.variance = param(rngs, (outputs,), ones, (None,), jnp.float32)
        self.stride, self.padding = (stride, stride), padding

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            self.stride,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        slope = self.scale[...] * jax.lax.rsqrt(self.variance[...] + 1e-3)
        return jax.nn.relu((x - self.mean[...]) * slope + self.bias[...])


_Layer = Callable[[jax.Array], jax.Array]


def _chain(x: jax.Array, *layers: _Layer) -> jax.Array:
    for layer in layers:
        x = layer(x)
    return x


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _average(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (1, 1), "SAME")


def _halve(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


class _BlockA(nnx.Module):
    """Branches of 1x1, 5x5 and twice 3x3 at 35x35."""

    def __init__(self, inputs: int, pooled: int, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        self.branch1x1 = layer(inputs, 64)
        self.branch5x5_1 = layer(inputs, 48)
        self.branch5x5_2 = layer(48, 64, 5)
        self.branch3x3dbl_1 = layer(inputs, 64)
        self.branch3x3dbl_2 = layer(64, 96, 3)
        self.branch3x3dbl_3 = layer(96, 96, 3)
        self.branch_pool = layer(inputs, pooled)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            self.branch1x1(x),
            _chain(x, self.branch5x5_1, self.branch5x5_2),
            _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            _chain(x, _average, self.branch_pool),
        )


class _BlockB(nnx.Module):
    """From 35x35 to 17x17."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        self.branch3x3 = layer(inputs, 384, 3, stride=2, padding="VALID")
        self.branch3x3dbl_1 = layer(inputs, 64)
        self.branch3x3dbl_2 = layer(64, 96, 3)
        self.branch3x3dbl_3 = layer(96, 96, 3, stride=2, padding="VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            self.branch3x3(x),
            _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            _halve(x),
        )


class _BlockC(nnx.Module):
    """Branches of 1x1, 7x7 and twice 7x7 in rows and columns, at 17x17."""

    def __init__(self, inputs: int, inner: int, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        row, column = (1, 7), (7, 1)
        self.branch1x1 = layer(inputs, 192)
        self.branch7x7_1 = layer(inputs, inner)
        self.branch7x7_2 = layer(inner, inner, row)
        self.branch7x7_3 = layer(inner, 192, column)
        self.branch7x7dbl_1 = layer(inputs, inner)
        self.branch7x7dbl_2 = layer(inner, inner, column)
        self.branch7x7dbl_3 = layer(inner, inner, row)
        self.branch7x7dbl_4 = layer(inner, inner, column)
        self.branch7x7dbl_5 = layer(inner, 192, row)
        self.branch_pool = layer(inputs, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            self.branch1x1(x),
            _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3),
            _chain(
                x,
                self.branch7x7dbl_1,
                self.branch7x7dbl_2,
                self.branch7x7dbl_3,
                self.branch7x7dbl_4,
                self.branch7x7dbl_5,
            ),
            _chain(x, _average, self.branch_pool),
        )


class _BlockD(nnx.Module):
    """From 17x17 to 8x8."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        self.branch3x3_1 = layer(inputs, 192)
        self.branch3x3_2 = layer(192, 320, 3, stride=2, padding="VALID")
        self.branch7x7x3_1 = layer(inputs, 192)
        self.branch7x7x3_2 = layer(192, 192, (1, 7))
        self.branch7x7x3_3 = layer(192, 192, (7, 1))
        self.branch7x7x3_4 = layer(192, 192, 3, stride=2, padding="VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        return _join(
            _chain(x, self.branch3x3_1, self.branch3x3_2),
            _chain(
                x,
                self.branch7x7x3_1,
                self.branch7x7x3_2,
                self.branch7x7x3_3,
                self.branch7x7x3_4,
            ),
            _halve(x),
        )


class _BlockE(nnx.Module):
    """Branches that end in pairs of parallel layers, at 8x8."""

    def __init__(self, inputs: int, pool: _Layer, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        self.branch1x1 = layer(inputs, 320)
        self.branch3x3_1 = layer(inputs, 384)
        self.branch3x3_2a = layer(384, 384, (1, 3))
        self.branch3x3_2b = layer(384, 384, (3, 1))
        self.branch3x3dbl_1 = layer(inputs, 448)
        self.branch3x3dbl_2 = layer(448, 384, 3)
        self.branch3x3dbl_3a = layer(384, 384, (1, 3))
        self.branch3x3dbl_3b = layer(384, 384, (3, 1))
        self.branch_pool = layer(inputs, 192)
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        single = self.branch3x3_1(x)
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        return _join(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            _chain(x, self.pool, self.branch_pool),
        )


class Inception(nnx.Module):
    """Maps pictures to the features of the last pooling layer."""

    def __init__(self, *, rngs: nnx.Rngs):
        layer = functools.partial(_Convolution, rngs=rngs)
        self.Conv2d_1a_3x3 = layer(3, 32, 3, stride=2, padding="VALID")
        self.Conv2d_2a_3x3 = layer(32, 32, 3, padding="VALID")
        self.Conv2d_2b_3x3 = layer(32, 64, 3)
        self.Conv2d_3b_1x1 = layer(64, 80)
        self.Conv2d_4a_3x3 = layer(80, 192, 3, padding="VALID")
        self.Mixed_5b = _BlockA(192, 32, rngs=rngs)
        self.Mixed_5c = _BlockA(256, 64, rngs=rngs)
        self.Mixed_5d = _BlockA(288, 64, rngs=rngs)
        self.Mixed_6a = _BlockB(288, rngs=rngs)
        self.Mixed_6b = _BlockC(768, 128, rngs=rngs)
        self.Mixed_6c = _BlockC(768, 160, rngs=rngs)
        self.Mixed_6d = _BlockC(768, 160, rngs=rngs)
        self.Mixed_6e = _BlockC(768, 192, rngs=rngs)
        self.Mixed_7a = _BlockD(768, rngs=rngs)
        self.Mixed_7b = _BlockE(1280, _average, rngs=rngs)
        self.Mixed_7c = _BlockE(2048, _maximum, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Features of pictures that `resize` has brought to the network's size.

        Args:
          pictures: float32 `[B, 299, 299, 3]`, RGB in [0, 255].

        Returns:
          float32 `[B, 2048]`, the mean over the last grid of 8 x 8.

        Raises:
          UserError: the pictures have another shape.
        """
        if pictures.shape[1:] != (SIDE, SIDE, 3):
            raise UserError(
                f"pictures of shape {pictures.shape}: Inception reads [B, {SIDE}, {SIDE}, 3]"
            )
        x = (pictures - 128) / 128
        x = _chain(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3, _halve)
        x = _chain(x, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3, _halve)
        x = _chain(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d)
        x = _chain(x, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e)
        x = _chain(x, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)
        return jnp.mean(x, axis=(1, 2))


def resize(pictures: jax.Array, side: int = SIDE) -> jax.Array:
    """Bilinear resize of TensorFlow 1, `align_corners=False`: pixel i is at i times the scale.

    It does not use the centres of pixels or an antialiasing filter, and it resizes both axes to the
    same length. FID's numbers depend on these details.

    Args:
      pictures: `[B, H, W, C]`, of any dtype.
      side: rows and columns of the result.

    Returns:
      float32 `[B, side, side, C]`.
    """
    pictures = pictures.astype(jnp.float32)
    for axis in (2, 1):
        length = pictures.shape[axis]
        place = np.arange(side, dtype=np.float32) * np.float32(length / side)
        low = place.astype(np.int32)
        shape = [side if i == axis else 1 for i in range(4)]
        weight = (place - low).astype(np.float32).reshape(shape)
        below = jnp.take(pictures, low, axis)
        above = jnp.take(pictures, np.minimum(low + 1, length - 1), axis)
        pictures = below + (above - below) * weight
    return pictures


@functools.cache
def inception() -> Model:
    """The network as a function of its parameters; a process only builds it once."""
    return Model(lambda rngs: Inception(rngs=rngs))

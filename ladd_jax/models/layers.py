"""Layers shared by the networks. Parameters are stored in one dtype and computed in another."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ladd_jax.models.base import param
from ladd_jax.models.quantized import dequantize
from ladd_jax.parallel.mesh import constrain, gather

Dtype = Any


class Linear(nnx.Module):
    """Dense layer on the last axis, into one or several output axes: `[..., I] -> [..., *O]`.

    If it is `quantized`, it has an int8 kernel and a scale, see `models.quantized`, and both are
    initialized with zeros.

    Attributes:
      parts: number of layers that this one is in published files, the length of the first of
        several output axes.
      low_rank: adapter whose output is added to the product, see `models.lora`; None for none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
        param_dtype: Dtype,
        init: initializers.Initializer | None = None,
        bias: bool = True,
        quantized: bool = False,
        parts: int = 1,
    ):
        outputs = (outputs,) if isinstance(outputs, int) else outputs
        flat = int(np.prod(outputs))
        flat_init = init or initializers.xavier_uniform()

        def shaped(
            key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
        ) -> jax.Array:
            return flat_init(key, (inputs, flat), dtype).reshape(shape)

        made, stored = (initializers.zeros, jnp.int8) if quantized else (shaped, param_dtype)
        self.kernel = param(rngs, (inputs, *outputs), made, axes, stored)
        self.scale = (
            param(rngs, outputs, initializers.ones, axes[1:], jnp.float32) if quantized else None
        )
        self.bias = (
            param(rngs, outputs, initializers.zeros, axes[1:], param_dtype) if bias else None
        )
        self.axes = axes
        self.dtype = dtype
        self.parts = parts
        self.low_rank: nnx.Module | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.scale is None:
            kernel = gather(self.kernel[...].astype(self.dtype), self.axes)
        else:
            # Gathered as int8, which is half of what bfloat16 would transfer.
            kernel = gather(self.kernel[...], self.axes)
            scale = gather(self.scale[...], self.axes[1:])
            kernel = dequantize(kernel, scale).astype(self.dtype)
        x = x.astype(self.dtype)
        y = jnp.tensordot(x, kernel, 1)
        if self.low_rank is not None:
            y += self.low_rank(x)
        if self.bias is not None:
            y += gather(self.bias[...].astype(self.dtype), self.axes[1:])
        middle = (None,) * (x.ndim - 2)
        return constrain(y, "batch", *middle, *self.axes[1:])


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis with a learned scale, computed in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, param_dtype: Dtype, epsilon: float = 1e-6):
        self.scale = param(rngs, (width,), initializers.ones, (None,), param_dtype)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with scale and bias, computed in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, param_dtype: Dtype, epsilon: float = 1e-6):
        self.scale = param(rngs, (width,), initializers.ones, (None,), param_dtype)
        self.bias = param(rngs, (width,), initializers.zeros, (None,), param_dtype)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = layer_norm(x.astype(jnp.float32), self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def layer_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without affine parameters, computed in float32."""
    y = x.astype(jnp.float32)
    y -= jnp.mean(y, axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return y.astype(x.dtype)


@jax.custom_vjp
def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """`layer_norm(x) (1 + scale) + shift`, computed in float32 and rounded once.

    If JAX differentiated it, it would store float32 arrays of the size of `x`. Its own gradient
    only stores `x`, and the mean and inverse deviation of each token.

    Args:
      x: `[B, N, D]` tokens.
      shift: `[B, D]`.
      scale: `[B, D]`.

    Returns:
      `[B, N, D]` in the dtype of `x`.
    """
    return _modulated_norm(x, shift, scale)[0]


def _modulated_norm(
    x: jax.Array, shift: jax.Array, scale: jax.Array, epsilon: float = 1e-6
) -> tuple[jax.Array, Any]:
    """The result, and what its gradient needs."""
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True) + epsilon)
    result = (y - mean) * inverse * (1 + scale.astype(jnp.float32)[:, None])
    result += shift.astype(jnp.float32)[:, None]
    return result.astype(x.dtype), (x, mean, inverse, scale)


def _modulated_norm_backward(kept: Any, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale = kept
    normed = (x.astype(jnp.float32) - mean) * inverse
    # In the dtype of x, since two loops read it and in float32 it would dominate memory traffic.
    scaled = cotangent * normed.astype(x.dtype)
    d_shift, d_scale = (jnp.sum(a, axis=1, dtype=jnp.float32) for a in (cotangent, scaled))
    d_normed = cotangent.astype(jnp.float32) * (1 + scale.astype(jnp.float32)[:, None])
    along = jnp.mean(d_normed * normed, axis=-1, keepdims=True)
    d_x = inverse * (d_normed - jnp.mean(d_normed, axis=-1, keepdims=True) - normed * along)
    return d_x.astype(x.dtype), d_shift.astype(scale.dtype), d_scale.astype(scale.dtype)


modulated_norm.defvjp(_modulated_norm, _modulated_norm_backward)


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU in its approximation by tanh (Hendrycks and Gimpel 2016), computed in float32.

    If JAX differentiated it, it would store several arrays of the size of `x`. Its own gradient
    only stores the derivative.

    Args:
      x: any shape, floating.

    Returns:
      an array with the shape and dtype of `x`.
    """
    return _gelu_tanh(x)[0]


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value and derivative, in the dtype of `x`."""
    y = x.astype(jnp.float32)
    slope, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    # (1 + tanh u) / 2 is the sigmoid of 2u, which is used because XLA considers tanh too expensive
    # to compute twice: a GPU would write it to memory in float32 when value and derivative are both
    # needed.
    gate = jax.nn.sigmoid(slope * (y + cubic * y**3))
    derivative = gate + y * gate * (1 - gate) * slope * (1 + 3 * cubic * y * y)
    return (y * gate).astype(x.dtype), derivative.astype(x.dtype)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    value, derivative = _gelu_tanh(*primals)
    return value, derivative * tangents[0]


TIME_WIDTH = 256
"""Number of features of an embedded time."""


def timestep_embedding(
    t: jax.Array, width: int = TIME_WIDTH, max_period: float = 10_000.0
) -> jax.Array:
    """Sinusoids `[cos, sin]` of `1000 t`.

    Args:
      t: float32 `[B]` in [0, 1].
      width: even number of features.
      max_period: longest wavelength divided by 2 pi, in steps of 1/1000.

    Returns:
      float32 `[B, width]`.
    """
    half = width // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class MLP(nnx.Module):
    """Two dense layers with an activation in between."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        activation: Any,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype,
        param_dtype: Dtype,
        init: initializers.Initializer | None = None,
        quantized: bool = False,
    ):
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "init": init,
            "quantized": quantized,
        }
        self.up = Linear(inputs, hidden, ("embed", "mlp"), **options)
        self.down = Linear(hidden, outputs, ("mlp", "embed"), **options)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))

"""Discriminator heads on the token grids of a frozen transformer.

The paper does not specify a head's layers. They follow StyleGAN-T (Sauer et al. 2023): a 1x1 block,
a residual block, and projection conditioning, where a block is a convolution with spectral norm, a
norm, and LeakyReLU 0.2. Convolutions are 2-D, so that a head sees the same neighbourhood in every
aspect ratio.

B batch, h w token grid, D width of the features, N = hw, K heads.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, Params, param
from ladd_jax.models.layers import MLP, TIME_WIDTH, Dtype, layer_norm, timestep_embedding
from ladd_jax.models.stack import stack
from ladd_jax.parallel.mesh import constrain, gather
from ladd_jax.ranges import COUNT, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The settings of a head.

    Attributes:
      channels: width of the convolutions.
      kernel: side of the residual convolution.
      groups: number of groups of the group norm, which is per sample so that the result does not
        depend on how the batch is spread over devices.
      projection: width of the inner product with the condition.
      spectral_norm: whether each convolution is divided by its largest singular value.
    """

    channels: int = 64
    kernel: int = 3
    groups: int = 8
    projection: int = 64
    spectral_norm: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, dict.fromkeys(("channels", "kernel", "groups", "projection"), COUNT))
        if self.channels % self.groups:
            raise UserError(
                f"head channels {self.channels} are not divisible by groups {self.groups}: "
                f"use {self.channels - self.channels % self.groups + self.groups}"
            )
        if self.kernel % 2 == 0:
            raise UserError(f"head kernel {self.kernel} is even: use {self.kernel + 1}")


@dataclasses.dataclass(frozen=True)
class HeadConfig(HeadSettings):
    """The architecture of a head.

    Attributes:
      features: D, width of the tokens read.
      condition_width: length of the vector that heads are conditioned on besides t_hat.
      told_noise: whether heads are given t_hat; false if their input is not noised.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    features: int
    condition_width: int
    told_noise: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32


def spectral_norm(kernel: jax.Array, iterations: int = 8) -> jax.Array:
    """The kernel divided by an estimate of its largest singular value as a matrix.

    The matrix is `[inputs, outputs]`. The power iteration starts from a fixed vector at each call,
    so that there is no state to keep in checkpoints. With 8 iterations the error is a few per cent
    for these small matrices.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    fixed = jax.lax.stop_gradient(matrix)
    start = np.random.default_rng(0).standard_normal(matrix.shape[1]).astype(np.float32)

    def iterate(_: jax.Array, v: jax.Array) -> jax.Array:
        v = (fixed @ v) @ fixed
        return v / (jnp.linalg.norm(v) + 1e-12)

    v = jax.lax.stop_gradient(jax.lax.fori_loop(0, iterations, iterate, jnp.asarray(start)))
    return (kernel / (jnp.linalg.norm(matrix @ v) + 1e-12)).astype(kernel.dtype)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2-D convolution with zero padding, `[B, h, w, I] -> [B, h, w, O]`, of an odd square kernel.

    It is one matrix product over gathered neighbourhoods. Heads run inside scans, where XLA's CPU
    convolution is some 30 times slower, and with few channels the neighbourhoods are small.
    """
    side = kernel.shape[0]
    _, h, w, _ = x.shape
    margin = side // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    shifted = [padded[:, i : i + h, j : j + w] for i in range(side) for j in range(side)]
    return jnp.tensordot(jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, kernel.shape[-1]), 1)


class _Convolution(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, config: HeadConfig, *, rngs: nnx.Rngs
    ):
        shape = (kernel, kernel, inputs, outputs)
        axes = (None, None, "embed", "mlp")
        self.kernel = param(rngs, shape, initializers.lecun_normal(), axes, config.param_dtype)
        self.bias = param(rngs, (outputs,), initializers.zeros, ("mlp",), config.param_dtype)
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        # Parameters are stored in shards but used whole, since a head is small.
        kernel, bias = (gather(p[...], (None,) * p.ndim) for p in (self.kernel, self.bias))
        if self.config.spectral_norm:
            kernel = spectral_norm(kernel)
        kernel = kernel.astype(self.config.dtype)
        y = convolve(x, kernel) + bias.astype(self.config.dtype)
        return constrain(y, "batch", None, None, None)


class _ConvolutionBlock(nnx.Module):
    def __init__(self, inputs: int, kernel: int, config: HeadConfig, *, rngs: nnx.Rngs):
        c = config.channels
        self.convolution = _Convolution(inputs, c, kernel, config, rngs=rngs)
        self.scale = param(rngs, (c,), initializers.ones, ("mlp",), config.param_dtype)
        self.shift = param(rngs, (c,), initializers.zeros, ("mlp",), config.param_dtype)
        self.groups = config.groups

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.convolution(x)
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        y -= jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=(1, 2, 4), keepdims=True) + 1e-5)
        y = y.reshape(b, h, w, c).astype(x.dtype)
        scale, shift = (gather(p[...].astype(x.dtype), (None,)) for p in (self.scale, self.shift))
        y = y * scale + shift
        return jax.nn.leaky_relu(y, 0.2)


class Head(nnx.Module):
    """A logit at each token, given the noise level and the text."""

    def __init__(self, config: HeadConfig, *, rngs: nnx.Rngs):
        c, p = config.channels, config.projection
        self.config = config
        self.entry = _ConvolutionBlock(config.features, 1, config, rngs=rngs)
        self.residual = _ConvolutionBlock(c, config.kernel, config, rngs=rngs)
        self.exit = _Convolution(c, p, 1, config, rngs=rngs)
        self.condition = MLP(
            (TIME_WIDTH if config.told_noise else 0) + config.condition_width,
            c,
            p,
            jax.nn.silu,
            rngs=rngs,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
        )

    def __call__(
        self,
        tokens: jax.Array,
        grid: tuple[int, int],
        t_hat: jax.Array | None,
        condition: jax.Array,
    ) -> jax.Array:
        """Judges tokens.

        Args:
          tokens: `[B, N, D]`, the image tokens after a block.
          grid: (h, w) with hw = N.
          t_hat: float32 `[B]`, noise level of the latents that the transformer saw; None for heads
            that are not given it.
          condition: `[B, condition_width]`, such as the pooled text.

        Returns:
          float32 logits `[B, h, w]`, positive for real.
        """
        # Token norms grow with the depth of a transformer, so each head normalises its input.
        x = layer_norm(tokens.astype(self.config.dtype))
        x = self.entry(x.reshape(x.shape[0], *grid, x.shape[-1]))
        # `math.sqrt`, since a Python number, unlike NumPy's, does not change the dtype.
        x = (self.residual(x) + x) / math.sqrt(2.0)
        told = [] if t_hat is None else [timestep_embedding(t_hat)]
        c = self.condition(jnp.concatenate([*told, condition.astype(jnp.float32)], axis=-1))
        logits = jnp.einsum("bhwp,bp->bhw", self.exit(x), c) / math.sqrt(self.config.projection)
        return logits.astype(jnp.float32)


def head(config: HeadConfig) -> Model:
    """One head, as a function of its parameters."""
    return Model(lambda rngs: Head(config, rngs=rngs))


class _HeadStack(nnx.Module):
    def __init__(self, config: HeadConfig, count: int, *, rngs: nnx.Rngs):
        self.heads = stack(lambda rngs: Head(config, rngs=rngs), count, rngs)


def head_stack(config: HeadConfig, count: int) -> Model:
    """Parameters of `count` independent heads, each leaf with a leading axis K, under `heads`."""
    return Model(lambda rngs: _HeadStack(config, count, rngs=rngs))


def one_head(params: Any, slot: jax.Array | int) -> Any:
    """Parameters of one head of a stack."""
    return jax.tree.map(lambda leaf: leaf[slot], params["heads"])


def refreshed(stacked: Model, params: Params, share: float, key: jax.Array) -> Params:
    """Parameters of a stack in which each head is reinitialized with a given probability.

    Args:
      stacked: the stack, made by `head_stack`.
      params: the stack's parameters.
      share: the probability.
      key: raw PRNG key.
    """
    choice_key, heads_key = jax.random.split(key)
    new = stacked.init(heads_key)
    (count,) = {len(leaf) for leaf in jax.tree.leaves(params)}
    is_new = jax.random.bernoulli(choice_key, share, (count,))
    return jax.tree.map(
        lambda a, b: jnp.where(is_new.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, params
    )

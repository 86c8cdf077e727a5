"""The convolutional autoencoder of Stable Diffusion 3 (Rombach et al. 2022, Esser et al. 2024).

B batch, H W image, F = 2^(levels - 1) reduction, h w = H/F W/F latent grid, C channels.
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
from ladd_jax.models.attention import attention
from ladd_jax.models.base import Model, Params, param
from ladd_jax.models.layers import Dtype, Linear
from ladd_jax.parallel.mesh import constrain, gather


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture, with the names of diffusers' `AutoencoderKL` and the sizes of SD3.

    Attributes:
      block_out_channels: width of each level, from the image inwards.
      layers_per_block: residual blocks in a level of the encoder; the decoder has one more.
      norm_num_groups: groups of each group norm; divides all widths.
      in_channels: channels of the images read.
      out_channels: channels of the images made.
      latent_channels: channels of the latents.
      mid_block_add_attention: whether there is attention over all places of the latent grid.
      scaling_factor: latents are `(z - shift_factor) * scaling_factor`.
      shift_factor: see `scaling_factor`.
      remat: whether gradients recompute residual blocks, attention and the end of the decoder from
        their inputs.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    mid_block_add_attention: bool = True
    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609
    remat: bool = False
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"block_out_channels {channels} is not divisible by norm_num_groups "
                    f"{self.norm_num_groups}: use multiples of it"
                )

    @property
    def reduction(self) -> int:
        """F, pixels on a side of one latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)


class _Convolution(nnx.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        config: AutoencoderConfig,
        *,
        rngs: nnx.Rngs,
        halve: bool = False,
    ):
        shape, axes = (side, side, inputs, outputs), (None, None, "embed", "mlp")
        self.kernel = param(rngs, shape, initializers.lecun_normal(), axes, config.param_dtype)
        self.bias = param(rngs, (outputs,), initializers.zeros, ("mlp",), config.param_dtype)
        # Zero padding on both sides, or only after the last row and column if the grid is halved.
        self.stride, self.padding = (2, (0, 1)) if halve else (1, (side // 2, side // 2))
        self.dtype = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        # Stored in shards but used whole, since image grids are large and kernels small.
        kernel, bias = (
            gather(p[...].astype(self.dtype), (None,) * p.ndim) for p in (self.kernel, self.bias)
        )
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (self.stride, self.stride),
            (self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return constrain(y + bias, "batch", None, None, None)


class _GroupNorm(nnx.Module):
    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        shape, dtype = (channels,), config.param_dtype
        self.scale = param(rngs, shape, initializers.ones, (None,), dtype)
        self.bias = param(rngs, shape, initializers.zeros, (None,), dtype)
        self.groups = config.norm_num_groups

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(b, h, w, self.groups, c // self.groups)
        y -= jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=(1, 2, 4), keepdims=True) + 1e-6)
        return (y.reshape(b, h, w, c) * self.scale[...] + self.bias[...]).astype(x.dtype)


class _ResidualBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.norm1 = _GroupNorm(inputs, config, rngs=rngs)
        self.convolution1 = _Convolution(inputs, outputs, 3, config, rngs=rngs)
        self.norm2 = _GroupNorm(outputs, config, rngs=rngs)
        self.convolution2 = _Convolution(outputs, outputs, 3, config, rngs=rngs)
        self.shortcut = (
            None if inputs == outputs else _Convolution(inputs, outputs, 1, config, rngs=rngs)
        )
        self.remat = config.remat

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda x: self._run(x))(x) if self.remat else self._run(x)

    def _run(self, x: jax.Array) -> jax.Array:
        y = self.convolution1(jax.nn.silu(self.norm1(x)))
        y = self.convolution2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class _Attention(nnx.Module):
    """One head over all places of the grid."""

    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
        }
        self.norm = _GroupNorm(channels, config, rngs=rngs)
        self.qkv = Linear(channels, (3, 1, channels), ("embed", None, None, None), **options)
        self.out = Linear(channels, channels, ("embed", None), **options)
        self.remat = config.remat

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda x: self._run(x))(x) if self.remat else self._run(x)

    def _run(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm(x).reshape(b, h * w, c)), 2, 0)
        return x + self.out(attention(q, k, v).reshape(b, h * w, c)).reshape(x.shape)


class _Middle(nnx.Module):
    def __init__(self, channels: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.block1 = _ResidualBlock(channels, channels, config, rngs=rngs)
        self.attention = (
            _Attention(channels, config, rngs=rngs) if config.mid_block_add_attention else None
        )
        self.block2 = _ResidualBlock(channels, channels, config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.block1(x)
        return self.block2(x if self.attention is None else self.attention(x))


class _Level(nnx.Module):
    """Residual blocks at one resolution, then a convolution to half or twice the resolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layers: int,
        resample: str | None,
        config: AutoencoderConfig,
        *,
        rngs: nnx.Rngs,
    ):
        widths = [inputs] + [outputs] * layers
        self.blocks = nnx.List(
            [_ResidualBlock(widths[i], outputs, config, rngs=rngs) for i in range(layers)]
        )
        self.doubles = resample == "double"
        halve = resample == "halve"
        self.resample = (
            None
            if resample is None
            else _Convolution(outputs, outputs, 3, config, rngs=rngs, halve=halve)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        if self.resample is None:
            return x
        if self.doubles:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.resample(x)


class Encoder(nnx.Module):
    """Maps images to the mean and log variance of their latents, before shift and scale."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        self.convolution_in = _Convolution(config.in_channels, widths[0], 3, config, rngs=rngs)
        self.levels = nnx.List(
            [
                _Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.layers_per_block,
                    "halve" if i < len(widths) - 1 else None,
                    config,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.middle = _Middle(widths[-1], config, rngs=rngs)
        self.norm_out = _GroupNorm(widths[-1], config, rngs=rngs)
        self.convolution_out = _Convolution(
            widths[-1], 2 * config.latent_channels, 3, config, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.convolution_in(images)
        for level in self.levels:
            x = level(x)
        x = jax.nn.silu(self.norm_out(self.middle(x)))
        return self.convolution_out(x).astype(jnp.float32)


class Decoder(nnx.Module):
    """Maps latents, after shift and scale are undone, to images."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        self.convolution_in = _Convolution(config.latent_channels, widths[0], 3, config, rngs=rngs)
        self.middle = _Middle(widths[0], config, rngs=rngs)
        self.levels = nnx.List(
            [
                _Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.layers_per_block + 1,
                    "double" if i < len(widths) - 1 else None,
                    config,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.norm_out = _GroupNorm(widths[-1], config, rngs=rngs)
        self.convolution_out = _Convolution(widths[-1], config.out_channels, 3, config, rngs=rngs)
        self.remat = config.remat

    def __call__(self, latents: jax.Array) -> jax.Array:
        x = self.middle(self.convolution_in(latents))
        for level in self.levels:
            x = level(x)
        return jax.checkpoint(lambda x: self._end(x))(x) if self.remat else self._end(x)

    def _end(self, x: jax.Array) -> jax.Array:
        return self.convolution_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)


class Autoencoder:
    """Functions of the parameters `{"encoder": ..., "decoder": ...}`; all are jit-compatible.

    `axes` and `shapes` are trees like the parameters, as in `Model`.
    """

    def __init__(self, config: AutoencoderConfig):
        self.config = config
        self.encoder = Model(lambda rngs: Encoder(config, rngs=rngs))
        self.decoder = Model(lambda rngs: Decoder(config, rngs=rngs))
        self.shapes: Params = {"encoder": self.encoder.shapes, "decoder": self.decoder.shapes}
        self.axes: Params = {"encoder": self.encoder.axes, "decoder": self.decoder.axes}

    @property
    def reduction(self) -> int:
        """F, pixels on a side of one latent pixel."""
        return self.config.reduction

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def moments(self, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the latents of images, before shift and scale.

        Args:
          params: parameters of both networks.
          images: `[B, H, W, in_channels]` in [-1, 1].

        Returns:
          two float32 arrays `[B, H // F, W // F, latent_channels]`; log variances are clipped to
          [-30, 20].

        Raises:
          UserError: the images are smaller than one latent pixel.
        """
        height, width = images.shape[1:3]
        smallest = self.config.reduction
        if min(height, width) < smallest:
            raise UserError(
                f"images of {height}x{width} are smaller than a latent pixel of "
                f"{smallest}x{smallest}: use at least {smallest} pixels a side"
            )
        mean, log_variance = jnp.split(self.encoder(params["encoder"], images), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, params: Params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Latents of images, shifted and scaled to what the transformer reads.

        Args:
          params: parameters of both networks.
          images: `[B, H, W, in_channels]` in [-1, 1].
          key: PRNG key to draw latents from their distribution; None takes the mode.

        Returns:
          float32 `[B, H // F, W // F, latent_channels]`.

        Raises:
          UserError: the images are smaller than one latent pixel.
        """
        z, log_variance = self.moments(params, images)
        if key is not None:
            z += jnp.exp(0.5 * log_variance) * jax.random.normal(key, z.shape)
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, params: Params, latents: jax.Array, tile: int = 1024) -> jax.Array:
        """Decodes latents to images.

        Args:
          params: parameters of both networks.
          latents: `[B, h, w, latent_channels]`, shifted and scaled.
          tile: side in pixels of the largest image that is decoded in one piece; larger images are
            decoded in tiles that overlap by at least a quarter and are blended.

        Returns:
          float32 `[B, h F, w F, out_channels]`, in [-1, 1] except for overshoot.

        Raises:
          UserError: the tile is smaller than four latent pixels.
        """
        z = latents.astype(jnp.float32) / self.config.scaling_factor + self.config.shift_factor
        factor = self.config.reduction
        side = tile // factor
        if side < 4:
            raise UserError(
                f"tile {tile} is smaller than four latent pixels of {factor}: use {4 * factor} or "
                f"more"
            )
        if max(z.shape[1:3]) <= side:
            return self.decoder(params["decoder"], z)
        return self._decode_tiles(params["decoder"], z, side)

    def _decode_tiles(self, params: Params, z: jax.Array, side: int) -> jax.Array:
        """Decodes tiles in turn in a scan, so that memory does not grow with the image."""
        b, h, w, c = z.shape
        factor = self.config.reduction
        rows, columns = min(side, h), min(side, w)
        overlap = side // 4
        tops, lefts = tile_starts(h, rows, overlap), tile_starts(w, columns, overlap)
        window_y = tile_window(rows * factor, overlap * factor)
        window_x = tile_window(columns * factor, overlap * factor)
        window = jnp.asarray(np.outer(window_y, window_x)[..., None])

        def add(image: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
            top, left = corner
            piece = jax.lax.dynamic_slice(z, (0, top, left, 0), (b, rows, columns, c))
            piece = self.decoder(params, piece) * window
            place = (0, top * factor, left * factor, 0)
            piece += jax.lax.dynamic_slice(image, place, piece.shape)
            return jax.lax.dynamic_update_slice(image, piece, place), None

        corners = jnp.asarray([(top, left) for top in tops for left in lefts])
        image = jnp.zeros((b, h * factor, w * factor, self.config.out_channels), jnp.float32)
        image, _ = jax.lax.scan(add, image, corners)
        weight_y = _coverage(h * factor, tops * factor, window_y)
        weight_x = _coverage(w * factor, lefts * factor, window_x)
        return image / jnp.asarray(np.outer(weight_y, weight_x)[..., None])


def tile_starts(length: int, tile: int, overlap: int) -> np.ndarray:
    """Starts of the fewest equal tiles that cover a length and overlap enough, int32."""
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    return np.linspace(0, length - tile, count).round().astype(np.int32)


def tile_window(length: int, overlap: int) -> np.ndarray:
    """Weights of a tile along one side, float32, which rise over the overlap and fall likewise.

    They follow a squared sine, which is flat at the edge, where the padding of convolutions
    corrupts the tile.
    """
    places = np.arange(length) + 0.5
    ramp = np.minimum(np.minimum(places, length - places) / overlap, 1.0)
    return (np.sin(0.5 * np.pi * ramp) ** 2).astype(np.float32)


def _coverage(length: int, starts: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Sum of the windows at each place."""
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(window)] += window
    return total

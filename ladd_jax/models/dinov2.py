"""The vision transformer of DINOv2 (Oquab et al. 2023), also with registers (Darcet et al. 2024).

B batch, H W picture, p side of a patch, h w = H/p W/p grid, N = hw patches, R registers,
M = 1 + R + N tokens in this order, D width, L blocks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ladd_jax.errors import UserError
from ladd_jax.models.attention import attention
from ladd_jax.models.base import Model, Params, Tap, param
from ladd_jax.models.layers import MLP, Dtype, LayerNorm, Linear
from ladd_jax.models.resize import bicubic
from ladd_jax.models.stack import on_batch, scan_with_way_back, stack
from ladd_jax.parallel.mesh import constrain, gather

# ImageNet's statistics of colours, for values from 0 to 1, which the processor normalises by.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)

_INIT = initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov2Config:
    """Architecture, with the names of Hugging Face's `Dinov2Config` and the sizes of ViT-S/14.

    Attributes:
      hidden_size: D.
      num_hidden_layers: L.
      num_attention_heads: attention heads.
      mlp_ratio: hidden width of the MLP over D; SwiGLU has two thirds of it.
      use_swiglu_ffn: whether the MLP is gated (SwiGLU) instead of using GELU.
      image_size: side of the picture that the table of positions is for.
      patch_size: p.
      num_register_tokens: R.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    mlp_ratio: int = 4
    use_swiglu_ffn: bool = False
    image_size: int = 518
    patch_size: int = 14
    num_register_tokens: int = 0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP; for SwiGLU a multiple of 8."""
        hidden = self.hidden_size * self.mlp_ratio
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else hidden

    @property
    def table(self) -> int:
        """Patches on a side of the table of positions."""
        return self.image_size // self.patch_size


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


class _SwiGLU(nnx.Module):
    """`down(silu(gate) * up)`; gate and up are one layer, in this order."""

    def __init__(self, config: Dinov2Config, options: dict[str, Any]):
        d, hidden = config.hidden_size, config.hidden
        self.up = Linear(d, (2, hidden), ("embed", None, "mlp"), **options)
        self.down = Linear(hidden, d, ("mlp", "embed"), **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.moveaxis(self.up(x), -2, 0)
        return self.down(jax.nn.silu(gate) * up)


class _Block(nnx.Module):
    """Attention and MLP on tokens `[B, M, D]`, each output scaled per feature (LayerScale)."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        d, k = config.hidden_size, config.num_attention_heads
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "init": _INIT,
        }

        def affine() -> LayerNorm:
            return LayerNorm(d, rngs=rngs, param_dtype=config.param_dtype)

        self.norm1 = affine()
        self.qkv = Linear(d, (3, k, d // k), ("embed", None, "heads", None), **options)
        self.out = Linear(d, d, ("heads", "embed"), **options)
        self.scale1 = param(rngs, (d,), initializers.ones, (None,), config.param_dtype)
        self.norm2 = affine()
        self.mlp = (
            _SwiGLU(config, options)
            if config.use_swiglu_ffn
            else MLP(d, config.hidden, d, _gelu, **options)
        )
        self.scale2 = param(rngs, (d,), initializers.ones, (None,), config.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)), 2, 0)
        x = x + self.scale1[...].astype(x.dtype) * self.out(attention(q, k, v).reshape(x.shape))
        return x + self.scale2[...].astype(x.dtype) * self.mlp(self.norm2(x))


class DINOv2(nnx.Module):
    """Maps pictures to tokens."""

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        self.config = config
        d, dtype = config.hidden_size, config.param_dtype
        self.patches = Linear(
            config.patch_size**2 * 3,
            d,
            (None, "embed"),
            rngs=rngs,
            dtype=config.dtype,
            param_dtype=dtype,
            init=_INIT,
        )
        self.summary = param(rngs, (1, 1, d), _INIT, (None, None, "embed"), dtype)
        if config.num_register_tokens:
            shape = (1, config.num_register_tokens, d)
            self.registers = param(rngs, shape, initializers.zeros, (None, None, "embed"), dtype)
        shape = (1, 1 + config.table**2, d)
        self.positions = param(rngs, shape, _INIT, (None, None, "embed"), dtype)
        self.blocks = stack(lambda rngs: _Block(config, rngs=rngs), config.num_hidden_layers, rngs)
        self.final_norm = LayerNorm(d, rngs=rngs, param_dtype=dtype)

    def __call__(self, pixels: jax.Array, tap: Tap | None = None) -> Any:
        """Computes the tokens of pictures.

        Args:
          pixels: float32 `[B, H, W, 3]` as `normalised` gives them; H and W are multiples of p.
          tap: reads the tokens `[B, M, D]` after each block.

        Returns:
          the last tokens, normalised, `[B, M, D]`; with `tap`, also what it returned, stacked
          `[L, ...]`.

        Raises:
          UserError: the picture is not divisible by the patch.
        """
        run, states, layers = self._stack()

        def body(x: jax.Array, layer_and_state: Any) -> tuple[jax.Array, Any]:
            layer, state = layer_and_state
            x = on_batch(run(state, x, (), ())[0])
            return x, None if tap is None else tap(layer, x)

        x, tapped = jax.lax.scan(body, self._embed(pixels), (layers, states))
        last = self.final_norm(x)
        return last if tap is None else (last, tapped)

    def features_vjp(self, pixels: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """All blocks' tokens, and the backward pass from these to the picture.

        Parameters are treated as constants, and blocks are recomputed in the backward pass.

        Args:
          pixels: pictures, as for a call.

        Returns:
          the tokens before the first block and after each, `[L + 1, B, M, D]`, and a function from
          their cotangent to that of `pixels`, which is only valid within the same trace.
        """
        run, states, layers = self._stack()
        x, embed_vjp = jax.vjp(self._embed, pixels)
        features = jnp.pad(x[None], ((0, len(layers)), (0, 0), (0, 0), (0, 0)))
        features = constrain(features, None, "batch", None, None)
        (x, _, features), back = scan_with_way_back(
            run, states, layers, (x, (), features), (), unroll=1
        )

        def back_to_pixels(features_bar: jax.Array) -> jax.Array:
            x_bar, _ = back(features, features_bar, features_bar[-1], ())
            return embed_vjp(x_bar)[0]

        return features, back_to_pixels

    def _stack(self) -> tuple[Callable[..., Any], Any, jax.Array]:
        graphdef, states = nnx.split(self.blocks)

        def run(state: Any, x: jax.Array, side: Any, shared: Any) -> tuple[jax.Array, Any]:
            return nnx.merge(graphdef, state)(x), side

        layers = jnp.arange(self.config.num_hidden_layers)
        return jax.checkpoint(run, prevent_cse=False), states, layers

    def _embed(self, pixels: jax.Array) -> jax.Array:
        """Tokens `[B, M, D]` before the first block."""
        config = self.config
        p, d = config.patch_size, config.hidden_size
        b, height, width, channels = pixels.shape
        if height % p or width % p:
            raise UserError(
                f"a picture of {height}x{width} is not divisible by DINOv2's patch of {p}: use "
                f"{height - height % p}x{width - width % p}"
            )
        rows, columns = height // p, width // p
        x = pixels.reshape(b, rows, p, columns, p, channels).swapaxes(2, 3)
        x = self.patches(x.reshape(b, rows * columns, p * p * channels))
        axes = (None, None, "embed")
        positions = gather(self.positions[...], axes)
        table = positions[:, 1:].reshape(1, config.table, config.table, d)
        # The models with and without registers were trained with different forms of bicubic.
        table = bicubic(table, rows, columns, antialias=bool(config.num_register_tokens))
        x += table.reshape(1, rows * columns, d).astype(x.dtype)
        summary = gather(self.summary[...], axes) + positions[:, :1]
        first = [jnp.broadcast_to(summary, (b, 1, d))]
        if config.num_register_tokens:
            registers = gather(self.registers[...], axes)
            first.append(jnp.broadcast_to(registers, (b, *registers.shape[1:])))
        x = jnp.concatenate([*(token.astype(x.dtype) for token in first), x], axis=1)
        return constrain(x, "batch", None, None)


class Dinov2(Model):
    """The network as functions of its parameters.

    Attributes:
      config: its architecture.
    """

    def __init__(self, config: Dinov2Config):
        super().__init__(lambda rngs: DINOv2(config, rngs=rngs))
        self.config = config

    def features_vjp(
        self, params: Params, pixels: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """See `DINOv2.features_vjp`."""
        return self.bind(params).features_vjp(pixels)

    def places(self, tokens: jax.Array) -> jax.Array:
        """Tokens of the patches plus the class token, from `[..., M, D]` to `[..., N, D]`."""
        return tokens[..., 1 + self.config.num_register_tokens :, :] + tokens[..., :1, :]


def normalised(pictures: jax.Array) -> jax.Array:
    """Pictures as DINOv2's processor scales them, float32 `[B, H, W, 3]`.

    Args:
      pictures: `[B, H, W, 1 or 3]` in [-1, 1]; grey is three equal channels.
    """
    x = pictures.astype(jnp.float32)
    x = jnp.broadcast_to(x, (*x.shape[:3], 3)) / 2 + 0.5
    return (x - jnp.asarray(_MEAN)) / jnp.asarray(_DEVIATION)


def dinov2_flops(config: Dinov2Config, height: int, width: int) -> int:
    """Multiplications and additions of one forward pass over one picture of this size.

    With M tokens of width D and an MLP of hidden width F, a block takes
    `8 M D^2 + 4 M^2 D + 4 M D F` (6 instead of the last 4 with SwiGLU), and the patches take
    `6 N p^2 D`.
    """
    d, f, p = config.hidden_size, config.hidden, config.patch_size
    n = (height // p) * (width // p)
    m = 1 + config.num_register_tokens + n
    products = 3 if config.use_swiglu_ffn else 2
    block = 8 * m * d * d + 4 * m * m * d + 2 * products * m * d * f
    return config.num_hidden_layers * block + 2 * n * 3 * p * p * d

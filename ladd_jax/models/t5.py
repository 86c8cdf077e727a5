"""The encoder of T5 v1.1 (Raffel et al. 2020, Shazeer 2020), the long text encoder of SD3.

B batch, T tokens, D width, K attention heads, L layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ladd_jax.models.base import Model, param
from ladd_jax.models.layers import Dtype, Linear, RMSNorm
from ladd_jax.models.stack import stack
from ladd_jax.parallel.mesh import constrain, gather


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Architecture, with the names of Hugging Face's `T5Config` and the sizes of T5-XXL.

    Attributes:
      vocab_size: number of token ids.
      d_model: D.
      d_kv: width of a head.
      d_ff: hidden width of the gated MLP.
      num_layers: L.
      num_heads: K; K times `d_kv` need not be D.
      relative_attention_num_buckets: number of biases of a head, half of them for each direction.
      relative_attention_max_distance: distance from which on all distances share a bias.
      layer_norm_epsilon: epsilon of all norms.
      dtype: dtype of computation; activations of T5-XXL exceed float16.
      param_dtype: dtype of parameters.
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each pair of positions, int32 `[T (query), T (key)]`.

    Half of the buckets are for keys after the query. In each half the first half holds one
    distance each, and the rest grow geometrically up to `max_distance`.
    """
    offset = np.arange(length)[None] - np.arange(length)[:, None]
    half = buckets // 2
    single = half // 2
    distance = np.abs(offset)
    # In float32 as in training, since some distances are exactly on a boundary.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single))
    ratio = ratio / np.float32(np.log(max_distance / single)) * np.float32(half - single)
    far = np.minimum(single + ratio.astype(np.int32), half - 1)
    bucket = np.where(distance < single, distance, far)
    return (bucket + half * (offset > 0)).astype(np.int32)


class _Block(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        d, k = config.d_model, config.num_heads
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "bias": False,
        }
        norm: dict[str, Any] = {
            "rngs": rngs,
            "param_dtype": config.param_dtype,
            "epsilon": config.layer_norm_epsilon,
        }
        self.norm1 = RMSNorm(d, **norm)
        self.qkv = Linear(d, (3, k, config.d_kv), ("embed", None, "heads", None), **options)
        self.out = Linear(k * config.d_kv, d, ("heads", "embed"), **options)
        self.norm2 = RMSNorm(d, **norm)
        self.up = Linear(d, (2, config.d_ff), ("embed", None, "mlp"), **options)
        self.down = Linear(config.d_ff, d, ("mlp", "embed"), **options)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)), 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0)
        x = x + self.out(attended.reshape(*x.shape[:2], -1))
        gate, up = jnp.moveaxis(self.up(self.norm2(x)), 2, 0)
        return x + self.down(jax.nn.gelu(gate, approximate=True) * up)


class T5Encoder(nnx.Module):
    """Maps token ids to context tokens. Padding is attended to, as in Stable Diffusion 3."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        init, dtype = initializers.normal(1.0), config.param_dtype
        table = (config.vocab_size, config.d_model)
        self.tokens = param(rngs, table, init, (None, "embed"), dtype)
        biases = (config.relative_attention_num_buckets, config.num_heads)
        self.relative_bias = param(rngs, biases, init, (None, "heads"), dtype)
        self.blocks = stack(lambda rngs: _Block(config, rngs=rngs), config.num_layers, rngs)
        self.final_norm = RMSNorm(
            config.d_model, rngs=rngs, param_dtype=dtype, epsilon=config.layer_norm_epsilon
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Encodes tokens.

        Args:
          ids: int32 `[B, T]`.

        Returns:
          float32 `[B, T, D]`.
        """
        config = self.config
        # The residual stream is float32, since a few features grow to tens of thousands, and
        # bfloat16 would lose what later blocks add to them.
        x = gather(self.tokens[...], (None, "embed"))[ids].astype(jnp.float32)
        buckets = relative_buckets(
            ids.shape[1],
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        bias = self.relative_bias[...].astype(jnp.float32)[buckets]  # [T, T, K]
        bias = constrain(bias.transpose(2, 0, 1)[None], None, "heads", None, None)
        graphdef, state = nnx.split(self.blocks)

        def body(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, state)(constrain(x, "batch", None, None), bias), None

        x, _ = jax.lax.scan(body, x, state)
        return self.final_norm(constrain(x, "batch", None, None))


def t5_encoder(config: T5Config) -> Model:
    """The network of a configuration, as a function of its parameters."""
    return Model(lambda rngs: T5Encoder(config, rngs=rngs))

"""CLIP's text transformer (Radford et al. 2021) with its projection, and parts of both towers.

B batch, T tokens, D width, P width of the projection, K attention heads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from ladd_jax.models.base import Model, param
from ladd_jax.models.layers import MLP, Dtype, LayerNorm, Linear
from ladd_jax.parallel.mesh import constrain, gather


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), CLIP-L's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTowerConfig:
    """What the architectures of both towers have in common, with Hugging Face's names.

    Attributes:
      hidden_size: D.
      num_hidden_layers: number of blocks.
      num_attention_heads: K.
      intermediate_size: hidden width of the MLP.
      projection_dim: P.
      hidden_act: `quick_gelu` (CLIP-L) or `gelu` (bigG).
      layer_norm_eps: epsilon of all norms.
      initializer: initializer of all matrices.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    projection_dim: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer: Any = initializers.normal(0.02)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(CLIPTowerConfig):
    """Architecture, with the names of Hugging Face's `CLIPTextConfig`.

    Attributes:
      vocab_size: number of token ids.
      max_position_embeddings: longest T.
      eos_token_id: id of the token at whose first place the pooled vector is read; None reads it at
        the highest id.
      token_initializer: initializer of the table of tokens; None for `initializer`.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int | None = 49407
    token_initializer: Any = None


class CLIPNorm(LayerNorm):
    """LayerNorm of a tower's width and epsilon."""

    def __init__(self, config: CLIPTowerConfig, *, rngs: nnx.Rngs):
        super().__init__(
            config.hidden_size,
            rngs=rngs,
            param_dtype=config.param_dtype,
            epsilon=config.layer_norm_eps,
        )


class CLIPBlock(nnx.Module):
    """Attention and MLP on tokens `[B, T, D]`; causal attention does not see later tokens."""

    def __init__(self, config: CLIPTowerConfig, *, rngs: nnx.Rngs, causal: bool):
        d, k = config.hidden_size, config.num_attention_heads
        options: dict[str, Any] = {
            "rngs": rngs,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "init": config.initializer,
        }
        self.norm1 = CLIPNorm(config, rngs=rngs)
        self.qkv = Linear(d, (3, k, d // k), ("embed", None, "heads", None), **options)
        self.out = Linear(d, d, ("heads", "embed"), **options)
        self.norm2 = CLIPNorm(config, rngs=rngs)
        activation = ACTIVATIONS[config.hidden_act]
        self.mlp = MLP(d, config.intermediate_size, d, activation, **options)
        self.causal = causal

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)), 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.mlp(self.norm2(x))


def clip_projection(config: CLIPTowerConfig, *, rngs: nnx.Rngs) -> Linear:
    """The matrix from D to the P features that both towers share."""
    return Linear(
        config.hidden_size,
        config.projection_dim,
        ("embed", None),
        rngs=rngs,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        init=config.initializer,
        bias=False,
    )


class CLIPText(nnx.Module):
    """Token ids to context tokens and a pooled vector, as Stable Diffusion 3 uses them."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        init, dtype = config.initializer, config.param_dtype
        token_init = config.token_initializer or init
        self.tokens = param(rngs, (config.vocab_size, d), token_init, (None, "embed"), dtype)
        self.positions = param(
            rngs, (config.max_position_embeddings, d), init, (None, "embed"), dtype
        )
        self.blocks = nnx.List(
            [CLIPBlock(config, rngs=rngs, causal=True) for _ in range(config.num_hidden_layers)]
        )
        self.final_norm = CLIPNorm(config, rngs=rngs)
        self.projection = clip_projection(config, rngs=rngs)

    def __call__(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes tokens.

        Args:
          ids: int32 `[B, T]`, T at most `max_position_embeddings`, each row with an EOS token.

        Returns:
          context `[B, T, D]`: the state before the last block, not normalised; and pooled
          `[B, P]`: the projected, normalised last state at the first EOS token.
        """
        tokens, positions = (
            gather(table[...], (None, "embed")) for table in (self.tokens, self.positions)
        )
        x = (tokens[ids] + positions[: ids.shape[1]]).astype(self.config.dtype)
        context = x = constrain(x, "batch", None, None)
        for block in self.blocks:
            context, x = x, constrain(block(x), "batch", None, None)
        eos = self.config.eos_token_id
        end = jnp.argmax(ids if eos is None else ids == eos, axis=1)
        last = jnp.take_along_axis(self.final_norm(x), end[:, None, None], axis=1)[:, 0]
        return context, self.projection(last)


def clip_text(config: CLIPTextConfig) -> Model:
    """The network of a configuration, as a function of its parameters."""
    return Model(lambda rngs: CLIPText(config, rngs=rngs))

"""The vision transformer of CLIP (Radford et al. 2021) with its projection.

B batch, S side of the picture, p side of a patch, N = (S / p)^2 patches, D width, P width of the
projection.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ladd_jax.models.base import Model, param
from ladd_jax.models.clip import CLIPBlock, CLIPNorm, CLIPTowerConfig, clip_projection
from ladd_jax.models.layers import Linear
from ladd_jax.parallel.mesh import constrain, gather


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(CLIPTowerConfig):
    """Architecture, with the names of Hugging Face's `CLIPVisionConfig`.

    Attributes:
      image_size: S.
      patch_size: p, which divides S.
    """

    image_size: int
    patch_size: int


class CLIPVision(nnx.Module):
    """Maps pictures to vectors in the same space as the text tower's."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, patch = config.hidden_size, config.patch_size
        init, dtype = config.initializer, config.param_dtype
        self.patches = Linear(
            patch * patch * 3,
            d,
            (None, "embed"),
            rngs=rngs,
            dtype=config.dtype,
            param_dtype=dtype,
            init=init,
            bias=False,
        )
        self.summary = param(rngs, (d,), init, ("embed",), dtype)
        tokens = (config.image_size // patch) ** 2 + 1
        self.positions = param(rngs, (tokens, d), init, (None, "embed"), dtype)
        self.first_norm = CLIPNorm(config, rngs=rngs)
        self.blocks = nnx.List(
            [CLIPBlock(config, rngs=rngs, causal=False) for _ in range(config.num_hidden_layers)]
        )
        self.final_norm = CLIPNorm(config, rngs=rngs)
        self.projection = clip_projection(config, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Vectors `[B, P]`, not normalised, of pictures float32 `[B, S, S, 3]` from the processor.

        A vector is the projected, normalised last state of the class token.
        """
        b, side, _, channels = pixels.shape
        patch, d = self.config.patch_size, self.config.hidden_size
        grid = side // patch
        x = pixels.reshape(b, grid, patch, grid, patch, channels).swapaxes(2, 3)
        x = self.patches(x.reshape(b, grid * grid, patch * patch * channels))
        summary = gather(self.summary[...], ("embed",)).astype(self.config.dtype)
        x = jnp.concatenate([jnp.broadcast_to(summary, (b, 1, d)), x], axis=1)
        x += gather(self.positions[...], (None, "embed")).astype(self.config.dtype)
        x = constrain(self.first_norm(x), "batch", None, None)
        for block in self.blocks:
            x = constrain(block(x), "batch", None, None)
        return self.projection(self.final_norm(x[:, 0]))


def clip_vision(config: CLIPVisionConfig) -> Model:
    """The network of a configuration, as a function of its parameters."""
    return Model(lambda rngs: CLIPVision(config, rngs=rngs))

"""The autoencoder's decoder alone, for training that backpropagates through it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ladd_jax.models.base import Params, PictureDecoder
from ladd_jax.models.layers import Dtype
from ladd_jax.models.sd3.autoencoder import AutoencoderConfig, Decoder
from ladd_jax.models.sd3.encoder_flops import decoder_flops
from ladd_jax.models.sd3.encoder_weights import open_autoencoder
from ladd_jax.weights.transfer import load


class _OfLatents(Decoder):
    """The decoder with shift and scale of the latents undone before it."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.scale, self.shift = config.scaling_factor, config.shift_factor

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Pictures float32 `[B, F H, F W, 3]` of latents `[B, H, W, C]`."""
        return super().__call__(latents.astype(jnp.float32) / self.scale + self.shift)


def picture_decoder(place: str | Path, dtype: Dtype, param_dtype: Dtype) -> PictureDecoder:
    """The decoder as a function of its parameters; reads no weights.

    Args:
      place: place as for `load_autoencoder`; empty for the decoder of the released pipelines.
      dtype: dtype of computation.
      param_dtype: dtype of parameters.

    Raises:
      NotFoundError: a file is not there, or the hub does not give access.
      UserError: the config is not one of SD3, or a tensor is missing, unknown or misshaped.
    """
    found = open_autoencoder(place).config if place else AutoencoderConfig()
    return decoder_of(dataclasses.replace(found, dtype=dtype, param_dtype=param_dtype))


def decoder_of(config: AutoencoderConfig) -> PictureDecoder:
    """The decoder of an architecture.

    Gradients recompute its parts, since storing their activations would take gigabytes for a
    picture of one megapixel.
    """
    config = dataclasses.replace(config, remat=True)

    def flops(height: int, width: int) -> int:
        return decoder_flops(config, height, width)

    return PictureDecoder(
        lambda rngs: _OfLatents(config, rngs=rngs),
        channels=config.latent_channels,
        reduction=config.reduction,
        flops=flops,
    )


def load_decoder(place: str | Path, decoder: PictureDecoder, mesh: Mesh) -> Params:
    """The decoder's parameters on a mesh; the encoder is not read.

    Args:
      place: place as for `picture_decoder`, but not empty.
      decoder: the decoder that `picture_decoder` gave.
      mesh: mesh to shard them over.

    Raises:
      NotFoundError: see `picture_decoder`.
      UserError: see `picture_decoder`.
    """
    opened = open_autoencoder(place)
    layout = opened.layout["decoder"]
    return load(opened.tensors, layout, decoder.shapes, decoder.axes, mesh)

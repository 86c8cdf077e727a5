"""The formulas of the encoders' FLOPs count what these networks do."""

import jax
import jax.numpy as jnp
import pytest

from ladd_jax.models.clip import CLIPTextConfig, clip_text
from ladd_jax.models.sd3.autoencoder import Autoencoder, AutoencoderConfig
from ladd_jax.models.sd3.decoder import decoder_of
from ladd_jax.models.sd3.encoder_flops import (
    autoencoder_flops,
    clip_flops,
    encoder_flops,
    t5_flops,
)
from ladd_jax.models.t5 import T5Config, t5_encoder


def compiler_flops(function, *args):
    # It takes the body of a loop once.
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


IDS = jax.ShapeDtypeStruct((1, 40), jnp.int32)


def test_of_clip():
    config = CLIPTextConfig(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512,
        projection_dim=64, vocab_size=50, max_position_embeddings=40,
    )  # fmt: skip
    model = clip_text(config)
    counted = compiler_flops(model, model.shapes, IDS)
    assert clip_flops(config, 40) == pytest.approx(counted, rel=0.03)


def test_of_t5_whose_heads_are_not_as_wide_as_it():
    config = T5Config(vocab_size=50, d_model=256, d_kv=32, d_ff=640, num_layers=1, num_heads=6)
    model = t5_encoder(config)
    counted = compiler_flops(model, model.shapes, IDS)
    assert t5_flops(config, 40) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("attends", [True, False])
def test_of_the_autoencoder(attends):
    config = AutoencoderConfig(
        block_out_channels=(64, 128, 128), layers_per_block=2, norm_num_groups=8,
        latent_channels=4, mid_block_add_attention=attends,
    )  # fmt: skip
    model = Autoencoder(config).encoder
    images = jax.ShapeDtypeStruct((1, 256, 384, 3), jnp.float32)
    # The compiler counts no products with the zeros around a picture.
    counted = compiler_flops(model, model.shapes, images)
    assert autoencoder_flops(config, 256, 384) == pytest.approx(counted, rel=0.04)


@pytest.mark.parametrize("attends", [True, False])
def test_of_the_decoder(attends):
    config = AutoencoderConfig(
        block_out_channels=(64, 96, 128), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        mid_block_add_attention=attends,
    )  # fmt: skip
    model = decoder_of(config)
    latents = jax.ShapeDtypeStruct((1, 32, 48, 4), jnp.float32)
    counted = compiler_flops(model, model.shapes, latents)
    assert model.flops(32, 48) == pytest.approx(counted, rel=0.04)


def test_of_sd3_t5_is_most_of_a_prompt_and_a_picture_is_more():
    text, picture = encoder_flops(128, 128, 333)
    # 4.7 billion parameters twice for each of 256 tokens, and attention.
    assert text == pytest.approx(2 * 4.7e9 * 256 + 0.2e12, rel=0.05)
    assert picture > text

"""Whole pictures: prompt to pixels, as `diffusers` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import save_pipeline

from ladd_jax.diffusion.samplers import euler, guided
from ladd_jax.weights import load_autoencoder, load_mmdit, load_text_encoders

PROMPTS = ["a red cat over the sea", "seven"]
LENGTH, GUIDANCE, STEPS = 20, 4.0, 5


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (8, 8)),
        ({"t5": False, "qk_norm": True}, (4, 12)),
        ({"dual_attention": (0,), "qk_norm": True, "depth": 3}, (10, 6)),
    ],
    ids=["sd3", "without T5", "sd3.5-medium"],
)
def test_pictures_from_the_same_noise_prompt_and_sigmas_are_those_of_diffusers(
    tmp_path, options, size
):
    import torch

    theirs = save_pipeline(tmp_path, **options)
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), *size, 16)).astype(np.float32)
    reduction = theirs.vae_scale_factor
    expected = theirs(
        PROMPTS,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        height=size[0] * reduction,
        width=size[1] * reduction,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=LENGTH,
        output_type="np",
    ).images
    sigmas = theirs.scheduler.sigmas.tolist()

    encoder = load_text_encoders(tmp_path, jnp.float32, t5_length=LENGTH)
    cond = encoder.encode(PROMPTS)
    null = {name: array[0] for name, array in encoder.encode([""]).items()}
    transformer = load_mmdit(tmp_path, jnp.float32)
    autoencoder, params = load_autoencoder(tmp_path, jnp.float32)

    @jax.jit
    def sample(transformer_params, params, noise):
        def model(*arguments):
            return transformer.model(transformer_params, *arguments)

        velocity = guided(model, cond, null, GUIDANCE)
        return autoencoder.decode(params, euler(velocity, noise, sigmas))

    images = np.asarray(sample(transformer.params, params, noise))
    images = np.clip(images / 2 + 0.5, 0, 1)
    assert np.std(expected) > 0.01
    assert np.max(np.abs(images - expected)) / np.max(np.abs(expected)) < 1e-3

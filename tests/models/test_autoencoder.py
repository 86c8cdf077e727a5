"""The autoencoder against diffusers', and its tiles."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st

from ladd_jax.models.sd3.autoencoder import Autoencoder, AutoencoderConfig, tile_starts, tile_window
from ladd_jax.models.sd3.encoder_weights import load_autoencoder

SCALE, SHIFT = 1.3, 0.2

# widths, layers per block, groups, latent channels, attention, image, latent grid
CONFIGS = [
    ((8, 12), 1, 4, 16, True, (18, 13), (5, 7)),  # odd and not square
    pytest.param(((4, 8), 2, 2, 3, True, (9, 20), (2, 3)), marks=pytest.mark.slow),
    ((6,), 2, 3, 4, True, (5, 6), (4, 3)),
    pytest.param(((2, 6, 4), 1, 2, 2, False, (24, 9), (1, 2)), marks=pytest.mark.slow),
]


def random_case(seed):
    draw = random.Random(seed)
    groups = draw.randint(1, 3)
    # A norm of one channel takes away what the bias before it adds: its gradient is rounding.
    widths = tuple(groups * draw.randint(2, 4) for _ in range(draw.randint(1, 3)))
    smallest = 2 ** (len(widths) - 1)
    image = tuple(draw.randint(smallest, 20) for _ in range(2))
    grid = tuple(draw.randint(1, 6) for _ in range(2))
    return (
        widths, draw.randint(1, 2), groups, draw.randint(1, 16), draw.random() < 0.5, image, grid
    )  # fmt: skip


CONFIGS += [pytest.param(random_case(seed), marks=pytest.mark.slow) for seed in range(10)]


def config(**changes):
    fields = dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    return AutoencoderConfig(**fields | changes)


def nchw(array):
    import torch

    return torch.tensor(np.asarray(array)).permute(0, 3, 1, 2).contiguous()


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_it_is_diffusers_autoencoder_with_its_gradients(case, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    widths, layers, groups, channels, attention, image_size, grid = case
    torch.manual_seed(len(widths))
    reference = diffusers.AutoencoderKL(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths), latent_channels=channels,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=attention,
        scaling_factor=SCALE, shift_factor=SHIFT,
    )  # fmt: skip
    pipelines.randomize(reference).save_pretrained(tmp_path / "vae")
    network, params = load_autoencoder(tmp_path, jnp.float32)

    rng = np.random.default_rng(0)
    batch = layers  # one and two
    images = rng.uniform(-1, 1, (batch, *image_size, 3)).astype(np.float32)
    latents = rng.standard_normal((batch, *grid, channels)).astype(np.float32)

    @jax.jit
    def run(params, images, latents):
        def forward(params, images, latents):
            outputs = *network.moments(params, images), network.decode(params, latents)
            return outputs, network.encode(params, images)

        outputs, vjp, mode = jax.vjp(forward, params, images, latents, has_aux=True)
        return outputs, mode, vjp(jax.tree.map(jnp.cos, outputs))

    outputs, mode, gradients = run(params, images, latents)
    x = nchw(images).requires_grad_()
    z = nchw(latents).requires_grad_()
    distribution = reference.encode(x).latent_dist
    wanted = [distribution.mean, distribution.logvar, reference.decode(z / SCALE + SHIFT).sample]
    for ours, theirs in zip(outputs, wanted, strict=True):
        assert tiny.max_difference(ours, nhwc(theirs)) < 1e-5
    torch.autograd.backward(wanted, [tensor.detach().cos() for tensor in wanted])
    params_gradient, *gradients = gradients
    for ours, theirs in zip(gradients, (x.grad, z.grad), strict=True):
        assert tiny.max_difference(ours, nhwc(theirs)) < 1e-4
    pipelines.with_gradients(reference).save_pretrained(tmp_path / "gradients" / "vae")
    _, wanted_gradients = load_autoencoder(tmp_path / "gradients", jnp.float32)
    assert tiny.gradient_difference(params_gradient, wanted_gradients) < 1e-4
    assert tiny.max_difference(mode, (nhwc(distribution.mode()) - SHIFT) * SCALE) < 1e-5


def test_sampled_latents_have_the_moments_of_their_distribution():
    network = Autoencoder(config())
    params = tiny.random_params(network, scale=1.0)
    images = jax.random.uniform(jax.random.key(0), (1, 6, 4, 3), minval=-1)
    draw = jax.jit(jax.vmap(lambda key: network.encode(params, images, key)))
    samples = draw(jax.random.split(jax.random.key(1), 4000))
    mean, log_variance = jax.jit(network.moments)(params, images)
    deviation = jnp.exp(0.5 * log_variance)
    z = samples / network.config.scaling_factor + network.config.shift_factor
    np.testing.assert_allclose(jnp.mean((z - mean) / deviation, axis=0), 0, atol=0.1)
    np.testing.assert_allclose(jnp.std((z - mean) / deviation, axis=0), 1, atol=0.06)


@given(st.integers(1, 300), st.integers(4, 64))
def test_tiles_cover_the_image_and_overlap_by_a_quarter(length, side):
    tile, overlap = min(length, side), side // 4
    assume(tile > overlap)
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == length - tile
    assert len(starts) == 1 or (starts[:-1] + tile - starts[1:]).min() >= overlap
    window = tile_window(tile, overlap)
    assert window.min() > 0 and window.max() <= 1
    np.testing.assert_array_equal(window, window[::-1])


@pytest.fixture(scope="module")
def local():
    """A decoder that sees the whole image in its norms alone, so tiles can come near the whole."""
    network = Autoencoder(config(mid_block_add_attention=False))
    decode = jax.jit(network.decode, static_argnames="tile")
    return decode, tiny.random_params(network, scale=0.6)


@pytest.mark.parametrize("grid", [(33, 70), (20, 48)])
def test_a_tiled_image_has_no_seams(local, grid):
    decode, params = local
    # Waves, so that each tile has about the statistics of the whole.
    y, x = np.mgrid[: grid[0], : grid[1]]
    waves = np.sin(y[..., None] * 1.3 + x[..., None] * 0.9 + np.arange(16))
    latents = jnp.asarray(waves[None], jnp.float32)
    whole, tiled = decode(params, latents), decode(params, latents, tile=64)
    error, spread = tiled - whole, float(jnp.std(whole))
    # Tiles set side by side have an error of 0.1 and jump by 0.3.
    assert 0 < float(jnp.sqrt(jnp.mean(error**2))) < 0.04 * spread
    for axis in (1, 2):
        jumps = jnp.mean(jnp.abs(jnp.diff(error, axis=axis)), axis=(0, 3 - axis, 3))
        assert float(jnp.max(jumps)) < 0.1 * spread


def test_the_weights_of_tiles_sum_to_one_everywhere(local):
    decode, params = local
    colours = jnp.asarray([0.5, -0.2, 0.7])
    flat = {"kernel": jnp.zeros((3, 3, 4, 3)), "bias": colours}
    params = {"decoder": params["decoder"] | {"convolution_out": flat}}
    image = decode(params, jnp.zeros((1, 33, 70, 16)), tile=64)
    np.testing.assert_allclose(image, jnp.broadcast_to(colours, image.shape), atol=1e-6)


def test_an_image_of_the_size_of_a_tile_is_decoded_whole(local):
    decode, params = local
    latents = jax.random.normal(jax.random.key(0), (1, 20, 48, 16))
    np.testing.assert_array_equal(
        decode(params, latents, tile=96), decode(params, latents, tile=1024)
    )


def test_above_1024_pixels_there_are_tiles():
    network = Autoencoder(config(mid_block_add_attention=False))
    for columns, tiled in ((512, False), (513, True)):
        latents = jax.ShapeDtypeStruct((1, 4, columns, 16), jnp.float32)
        assert ("scan" in str(jax.make_jaxpr(network.decode)(network.shapes, latents))) == tiled


def test_sizes_that_can_not_be_are_named(local):
    network = Autoencoder(config())
    params = network.shapes
    with pytest.raises(ValueError, match="images of 1x8 are smaller than a latent pixel of 2x2"):
        network.encode(params, jnp.zeros((1, 1, 8, 3)))
    with pytest.raises(ValueError, match="tile 7 is smaller than four latent pixels of 2: use 8"):
        network.decode(params, jnp.zeros((1, 4, 4, 16)), tile=7)
    with pytest.raises(ValueError, match="12 is not divisible by norm_num_groups 8"):
        config(block_out_channels=(8, 12), norm_num_groups=8)


def test_sd3s_autoencoder_has_its_size():
    network = Autoencoder(AutoencoderConfig())
    assert network.config.reduction == 8
    assert sum(leaf.size for leaf in jax.tree.leaves(network.shapes)) == 83_819_683

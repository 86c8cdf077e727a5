"""Heads are 2-D, conditioned, independent and bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.models.heads import HeadConfig, convolve, head, head_stack, one_head, spectral_norm

CONFIG = HeadConfig(12, tiny.POOLED, channels=8, groups=2, projection=4)
TOKENS = jax.random.normal(jax.random.PRNGKey(0), (2, 24, 12))
T_HAT = jnp.asarray([0.3, 0.8])
POOLED = jax.random.normal(jax.random.PRNGKey(1), (2, tiny.POOLED))


def judge(tokens=TOKENS, grid=(4, 6), t_hat=T_HAT, pooled=POOLED, seed=0):
    model = head(CONFIG)
    params = tiny.random_params(model, seed, scale=1.0)
    return jax.jit(model.__call__, static_argnums=2)(params, tokens, grid, t_hat, pooled)


def test_there_is_a_logit_at_each_token():
    assert judge().shape == (2, 4, 6)
    assert judge(grid=(6, 4)).shape == (2, 6, 4)


def test_the_noise_level_and_the_text_matter():
    for changed in (judge(t_hat=T_HAT / 2), judge(pooled=POOLED * 2)):
        assert float(jnp.max(jnp.abs(changed - judge()))) > 1e-3


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (3, 8)])
def test_the_neighbourhood_is_two_dimensional(grid):
    # A logit depends on the tokens above and below it as on those beside it, whatever the width.
    # The group norm reaches every token, but faintly.
    reach = jnp.linalg.norm(jax.grad(lambda x: judge(x, grid)[0, 1, 1])(TOKENS)[0], axis=-1)
    reach = np.array(reach.reshape(grid))
    near = reach[:3, :3].copy()
    reach[:3, :3] = 0
    assert near.mean() > 3 * reach.sum() / (reach > 0).sum()
    assert min(near[0].mean(), near[2].mean()) > 1.5 * reach.sum() / (reach > 0).sum()


def test_a_convolution_is_xlas():
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 5, 7, 3))
    for side in (1, 3, 5):
        kernel = jax.random.normal(jax.random.PRNGKey(1), (side, side, 3, 4))
        reference = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(convolve(x, kernel), reference, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 64, 16), (3, 3, 16, 16), (1, 1, 8, 64)])
def test_spectral_norm_bounds_the_largest_singular_value(shape):
    kernel = 7 * jax.random.normal(jax.random.PRNGKey(0), shape)
    normed = spectral_norm(kernel).reshape(-1, shape[-1])
    largest = np.linalg.svd(np.asarray(normed), compute_uv=False)[0]
    assert 1.0 - 1e-5 <= largest < 1.15


def test_each_sample_is_judged_on_its_own():
    alone = judge(TOKENS[1:], t_hat=T_HAT[1:], pooled=POOLED[1:])
    np.testing.assert_allclose(judge()[1:], alone, atol=1e-5)


def test_heads_of_a_stack_are_independent():
    params = head_stack(CONFIG, 3).init(jax.random.PRNGKey(0))
    one, two = one_head(params, 0), one_head(params, 1)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(lambda s: s.shape, head(CONFIG).shapes)
    kernels = [p["entry"]["convolution"]["kernel"] for p in (one, two)]
    assert float(jnp.max(jnp.abs(kernels[0] - kernels[1]))) > 0.1


def test_a_setting_that_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="channels 10 are not divisible by groups 4: use 12"):
        HeadConfig(12, 4, channels=10, groups=4)
    with pytest.raises(ValueError, match="kernel 4 is even: use 5"):
        HeadConfig(12, 4, kernel=4)

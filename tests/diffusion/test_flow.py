"""The conventions of rectified flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.diffusion.flow import interpolate, predict_x0, velocity
from ladd_jax.diffusion.times import discrete, logit_normal, shift

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 1)).astype(np.float32)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_true_velocity_gives_the_data_back_at_any_time(times):
    x_0, eps = X
    t = jnp.asarray(times, jnp.float32)
    x_t = interpolate(x_0, eps, t)
    np.testing.assert_allclose(predict_x0(x_t, velocity(x_0, eps), t), x_0, atol=1e-5)


def test_time_zero_is_data_and_time_one_is_noise():
    x_0, eps = X
    np.testing.assert_array_equal(interpolate(x_0, eps, jnp.zeros(3)), x_0)
    np.testing.assert_array_equal(interpolate(x_0, eps, jnp.ones(3)), eps)


def test_a_velocity_is_not_the_data():
    # The bug of other implementations: the network's output taken for x_0 as it is.
    x_0, eps = X
    v = velocity(x_0, eps)
    x_t = interpolate(x_0, eps, jnp.full(3, 0.5))
    assert float(jnp.max(jnp.abs(predict_x0(x_t, v, jnp.full(3, 0.5)) - v))) > 0.5


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (0.09, 1.0), (-1.0, 0.5)])
def test_renoising_times_are_logit_normal(mean, std):
    t = np.asarray(logit_normal(jax.random.PRNGKey(0), 20_000, mean, std))
    logits = np.log(t / (1 - t))
    assert np.mean(logits) == pytest.approx(mean, abs=0.03)
    assert np.std(logits) == pytest.approx(std, abs=0.03)


def test_discrete_times_come_with_their_probabilities():
    times, p = (1.0, 0.75, 0.5, 0.25), (0.7, 0.1, 0.0, 0.2)
    t = np.asarray(discrete(jax.random.PRNGKey(0), 10_000, times, jnp.asarray(p)))
    for time, probability in zip(times, p, strict=True):
        assert np.mean(t == time) == pytest.approx(probability, abs=0.02)


@given(st.floats(0, 1), st.floats(1, 10))
def test_shift_moves_times_towards_noise_and_keeps_the_ends(t, factor):
    assert shift(t, factor) >= t - 1e-9
    assert shift(0.0, factor) == 0 and shift(1.0, factor) == pytest.approx(1)

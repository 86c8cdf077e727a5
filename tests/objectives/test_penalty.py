"""The penalty on a head's inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.objectives.adversarial import (
    ADVERSARIAL_LOSSES,
    R1,
    Due,
    in_pairs,
    pair_loss,
    real_loss,
)

B, N, D = 4096, 3, 5
KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(D,)), jnp.float32)
INPUTS = jnp.asarray(np.random.default_rng(1).normal(size=(B, N, D)), jnp.float32)
KEYS = jax.random.split(jax.random.PRNGKey(0), B)
DUE = Due(jnp.asarray(4), KEYS)


def linear(kernel):
    """A head with a logit at each of N places, whose gradient is the kernel."""
    return lambda tokens: tokens @ kernel


def squared(penalty, head=None):
    added, told = penalty(head or linear(KERNEL), INPUTS, DUE)
    assert np.isnan(told) or float(added) == pytest.approx(
        0.5 * penalty.gamma * penalty.interval * float(told)
    )
    return told


def test_it_is_half_the_squared_gradient_times_its_weight():
    wanted = N * float(KERNEL @ KERNEL)
    assert float(squared(R1(1e-2, 4))) == pytest.approx(wanted, rel=1e-3)


def test_between_its_steps_it_is_nothing_and_not_logged():
    added, told = R1(1e-2, 4)(linear(KERNEL), INPUTS, Due(DUE.step + 1))
    assert float(added) == 0 and np.isnan(told)


def test_noise_estimates_the_same_quantity_at_every_size_of_the_inputs():
    def bent(tokens):
        return jnp.tanh(tokens @ KERNEL / 2)

    for head in (linear(KERNEL), bent):
        wanted = float(squared(R1(1e-2, 4), head))
        assert float(squared(R1(1e-2, 4, noise=0.02), head)) == pytest.approx(wanted, rel=0.1)
    # Of large inputs, beside which a fixed noise would be lost, and a head that scales them back.
    large = R1(1.0, noise=0.02)(lambda x: linear(KERNEL)(x / 1e3), 1e3 * INPUTS, DUE)[1]
    wanted = N * float(KERNEL @ KERNEL) / 1e6
    assert float(large) == pytest.approx(wanted, rel=0.1)


def test_its_noise_is_of_each_sample_and_follows_from_its_key():
    penalty, head = R1(2.0, noise=0.1), linear(KERNEL)
    whole = float(penalty(head, INPUTS[:4], Due(DUE.step, KEYS[:4]))[1])
    parts = [
        float(penalty(head, INPUTS[i : i + 1], Due(DUE.step, KEYS[i : i + 1]))[1]) for i in range(4)
    ]
    assert whole == pytest.approx(np.mean(parts), rel=1e-5) and len(set(parts)) == 4


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_pairs_have_it_on_real_and_on_fake_samples(noise):
    head, penalty = linear(KERNEL), R1(1.0, noise=noise)
    plain, form = ADVERSARIAL_LOSSES["hinge"], ADVERSARIAL_LOSSES["relativistic"]
    real = real_loss(plain, penalty, DUE)(head, INPUTS)[0]
    real -= real_loss(plain, R1(0.0), DUE)(head, INPUTS)[0]
    twice = in_pairs(INPUTS, INPUTS)
    due = Due(DUE.step, in_pairs(KEYS, KEYS))
    pairs, statistics = pair_loss(form, penalty, due)(head, twice)
    pairs -= pair_loss(form, R1(0.0), due)(head, twice)[0]
    assert float(pairs) == pytest.approx(2 * float(real), rel=1e-4)
    assert "penalty" in statistics["real"] and "penalty" not in statistics["fake"]

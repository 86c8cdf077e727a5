"""The penalty on a head's inputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES, Penalty, pair_loss, real_loss

B, N, D = 4096, 3, 5
KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(D,)), jnp.float32)
INPUTS = jnp.asarray(np.random.default_rng(1).normal(size=(B, N, D)), jnp.float32)
DUE = jnp.asarray(4)


def linear(kernel):
    """A head with a logit at each of N places, whose gradient is the kernel."""
    return lambda tokens: tokens @ kernel


def squared(penalty, kernel=KERNEL, step=DUE):
    head = linear(kernel)
    added, told = penalty(head, INPUTS, step)
    assert np.isnan(told) or float(added) == pytest.approx(
        0.5 * penalty.gamma * penalty.interval * float(told)
    )
    return told


def test_it_is_half_the_squared_gradient_times_its_weight():
    wanted = N * float(KERNEL @ KERNEL)
    assert float(squared(Penalty(1e-2, 4))) == pytest.approx(wanted, rel=1e-3)


def test_between_its_steps_it_is_nothing_and_not_logged():
    added, told = Penalty(1e-2, 4)(linear(KERNEL), INPUTS, DUE + 1)
    assert float(added) == 0 and np.isnan(told)


def test_pairs_have_it_on_real_and_on_fake_samples():
    head, penalty = linear(KERNEL), Penalty(1.0)
    plain, form = ADVERSARIAL_LOSSES["hinge"], ADVERSARIAL_LOSSES["relativistic"]
    real = real_loss(plain, penalty, DUE)(head, INPUTS)[0]
    real -= real_loss(plain, Penalty(0.0), DUE)(head, INPUTS)[0]
    pairs, statistics = pair_loss(form, penalty, DUE)(head, INPUTS)
    pairs -= pair_loss(form, Penalty(0.0), DUE)(head, INPUTS)[0]
    assert float(pairs) == pytest.approx(2 * float(real), rel=1e-4)
    assert "r1" in statistics["real"] and "r1" not in statistics["fake"]

"""The penalty on a head's inputs, taken and estimated."""

import jax
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
    added, told = penalty(head, INPUTS, head(INPUTS), step)
    assert np.isnan(told) or float(added) == pytest.approx(
        0.5 * penalty.gamma * penalty.interval * float(told)
    )
    return told


def test_it_is_the_squared_gradient_and_the_estimate_comes_close():
    wanted = N * float(KERNEL @ KERNEL)
    assert float(squared(Penalty(1e-2, 4))) == pytest.approx(wanted, rel=1e-3)
    for sigma in (0.01, 0.1, 10.0):
        assert float(squared(Penalty(1e-2, 4, sigma))) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_between_its_steps_it_is_nothing_and_not_logged(sigma):
    penalty = Penalty(1e-2, 4, sigma)
    head = linear(KERNEL)
    added, told = penalty(head, INPUTS, head(INPUTS), DUE + 1)
    assert float(added) == 0 and np.isnan(told)


def test_each_step_has_noise_of_its_own():
    penalty = Penalty(1e-2, 1, 0.1)
    assert float(squared(penalty)) != float(squared(penalty, step=DUE + 1))


def test_its_gradient_makes_the_head_flatter():
    def added(kernel):
        head = linear(kernel)
        return Penalty(1.0, 1, 0.1)(head, INPUTS, head(INPUTS), DUE)[0]

    # Half the squared gradient of each of N places.
    np.testing.assert_allclose(jax.grad(added)(KERNEL), N * KERNEL, rtol=0.1, atol=0.05)


def test_pairs_have_it_on_real_and_on_fake_samples():
    head, penalty = linear(KERNEL), Penalty(1.0)
    plain, form = ADVERSARIAL_LOSSES["hinge"], ADVERSARIAL_LOSSES["relativistic"]
    real = real_loss(plain, penalty, DUE)(head, INPUTS)[0]
    real -= real_loss(plain, Penalty(0.0), DUE)(head, INPUTS)[0]
    pairs, statistics = pair_loss(form, penalty, DUE)(head, INPUTS)
    pairs -= pair_loss(form, Penalty(0.0), DUE)(head, INPUTS)[0]
    assert float(pairs) == pytest.approx(2 * float(real), rel=1e-4)
    assert "r1" in statistics["real"] and "r1" not in statistics["fake"]

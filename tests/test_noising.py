"""How `benchmarks.noising` mixes old and new noise between the steps of a chain."""

import numpy as np
import pytest

from benchmarks.noising import noised, renoised
from ladd_jax.data.buckets import Bucket

BUCKET = Bucket(4, 4)


@pytest.fixture
def chain():
    rng = np.random.default_rng(0)
    x_0, eps = rng.normal(size=(2, 3, 4, 4, 1))
    x_t = 0.25 * x_0 + 0.75 * eps
    return {BUCKET: x_t}, {BUCKET: x_0}, eps


def test_all_new_noise_is_that_of_the_consistency_sampler(chain):
    x, x_0, _ = chain
    found = renoised(x, x_0, 0.75, 0.5, fresh=1.0, seed=2)
    np.testing.assert_allclose(found[BUCKET], noised(x_0, 0.5, seed=2)[BUCKET], atol=1e-6)


def test_no_new_noise_is_a_step_of_euler(chain):
    x, x_0, eps = chain
    found = renoised(x, x_0, 0.75, 0.5, fresh=0.0, seed=2)
    np.testing.assert_allclose(found[BUCKET], 0.5 * x_0[BUCKET] + 0.5 * eps, atol=1e-6)
    velocity = (x[BUCKET] - x_0[BUCKET]) / 0.75
    np.testing.assert_allclose(found[BUCKET], x[BUCKET] - 0.25 * velocity, atol=1e-6)

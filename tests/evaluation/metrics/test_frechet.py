"""The Fréchet distance against its closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ladd_jax.evaluation.metrics.frechet import frechet_distance

seeds = st.integers(0, 2**32 - 1)
# Fewer samples than features give singular covariances.
counts = st.integers(2, 40)


def features(seed: int, count: int, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(
        size=width
    )


@given(seeds, counts)
@settings(deadline=None)
def test_a_set_is_at_distance_zero_from_itself(seed, count):
    a = features(seed, count)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.square(a).sum())


@given(seeds, seeds, counts, counts)
@settings(deadline=None)
def test_distance_is_symmetric_and_not_negative(seed_a, seed_b, n, m):
    a, b = features(seed_a, n), features(seed_b, m)
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)


@given(seeds, counts, st.lists(st.floats(-9, 9), min_size=6, max_size=6))
@settings(deadline=None)
def test_a_shifted_set_is_at_the_squared_length_of_the_shift(seed, count, shift):
    a = features(seed, count)
    expected = np.sum(np.square(shift))
    assert frechet_distance(a, a + np.array(shift)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(seeds, st.floats(0.1, 5))
@settings(deadline=None)
def test_a_scaled_set_is_at_the_closed_form(seed, scale):
    a = features(seed, 30) - features(seed, 30).mean(0)
    variance = np.square(a).sum() / (len(a) - 1)
    assert frechet_distance(a, scale * a) == pytest.approx((scale - 1) ** 2 * variance, abs=1e-8)


def test_general_covariances_give_the_formula_with_a_matrix_root():
    a, b = features(1, 50), features(2, 70)
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.trace(c_a + c_b - 2 * np.real(sqrtm(c_a @ c_b)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [6, 3])
def test_many_samples_are_at_the_same_distance_as_few_that_have_their_covariance(rank):
    """Few for their width go by QR, many by their products, of singular covariances too."""
    a, b = features(1, 20, 6), features(2, 20, 6)
    b[:, rank:] = b[:, :1]
    often = 50
    # Unbiased covariances of copies are larger by this factor.
    scale = np.sqrt((often * 20 - 1) / (often * 19))
    many_a, many_b = (np.tile(x.mean(0) + scale * (x - x.mean(0)), (often, 1)) for x in (a, b))
    assert frechet_distance(many_a, many_b) == pytest.approx(frechet_distance(a, b), rel=1e-7)


def test_the_order_of_samples_does_not_matter():
    a, b = features(1, 20), features(2, 30)
    assert frechet_distance(a[::-1], b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_float32_features_are_measured_in_float64():
    a = (features(1, 20) + 1e3).astype(np.float32)
    b = (features(2, 20) + 1e3).astype(np.float32)
    expected = frechet_distance(a.astype(np.float64), b.astype(np.float64))
    assert frechet_distance(a, b) == expected


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "a set of 1 samples"),
        (np.zeros((4, 3)), np.zeros((5, 2)), "features of 3 and 2 numbers"),
        (np.full((4, 3), np.nan), np.zeros((5, 3)), "4 of 4 samples"),
    ],
)
def test_sets_without_a_distance_are_refused(a, b, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)

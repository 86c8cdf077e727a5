"""Spread within prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_jax.evaluation.metrics import diversity as metric
from ladd_jax.evaluation.metrics.diversity import diversity

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(4), rng.integers(2, 6, 4))
    return rng, rng.normal(size=(len(groups), 3)), groups


def test_two_samples_are_as_diverse_as_they_are_far_apart():
    assert diversity(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([7, 7])) == 5.0


def test_every_prompt_counts_the_same_whatever_its_number_of_samples():
    features = np.array([[0.0], [1.0], [0.0], [3.0], [0.0], [3.0]])
    groups = np.array([0, 0, 1, 1, 1, 1])
    assert diversity(features, groups) == pytest.approx((1 + 2) / 2)


def test_distance_between_prompts_does_not_count():
    groups = np.array([0, 0, 1, 1])
    assert diversity(np.array([[5.0], [5.0], [-5.0], [-5.0]]), groups) == 0.0


@given(seeds)
@settings(deadline=None)
def test_the_order_of_samples_does_not_matter(seed):
    rng, features, groups = drawn(seed)
    order = rng.permutation(len(groups))
    assert diversity(features[order], groups[order]) == pytest.approx(diversity(features, groups))


@given(seeds, st.floats(0, 10))
@settings(deadline=None)
def test_it_scales_with_the_features_and_ignores_their_origin(seed, scale):
    _, features, groups = drawn(seed)
    moved = diversity(scale * features + 3, groups)
    assert moved == pytest.approx(scale * diversity(features, groups), abs=1e-9)


def test_a_prompt_with_one_sample_does_not_count():
    features, groups = np.array([[0.0], [3.0], [9.0]]), np.array([1, 1, 4])
    assert diversity(features, groups) == 3.0
    assert diversity(features, np.arange(3)) is None


def test_prompts_of_other_numbers_of_samples_and_in_parts_are_as_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 7, 40)))
    features, identity = rng.normal(size=(len(groups), 5)) + 100, rng.integers(0, 99, len(groups))
    means = []
    for group in range(40):
        places = np.flatnonzero(groups == group)
        pairs = [
            np.linalg.norm(features[i] - features[j])
            for i in places
            for j in places
            if i < j and identity[i] != identity[j]
        ]
        means += [np.mean(pairs)] if pairs else []
    assert diversity(features, groups, identity) == pytest.approx(np.mean(means), rel=1e-9)
    monkeypatch.setattr(metric, "_AT_ONCE", 60)
    assert diversity(features, groups, identity) == pytest.approx(np.mean(means), rel=1e-9)


def test_copies_of_a_sample_are_not_two_samples():
    features, groups = np.array([[0.0], [0.0], [3.0]]), np.zeros(3, int)
    assert diversity(features, groups, np.array([5, 5, 6])) == 3.0
    assert diversity(features[:2], groups[:2], np.array([5, 5])) is None


@pytest.mark.parametrize("count", [0, 2])
def test_groups_that_do_not_fit_the_samples_are_refused(count):
    with pytest.raises(ValueError, match="one group for each sample"):
        diversity(np.zeros((count and 3, 2)), np.zeros(count, int))

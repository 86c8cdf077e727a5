"""Elo and win rates of votes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.evaluation.arena.elo import Game, ratings, wilson, win_rates

MODELS = 4


@st.composite
def games(draw):
    pairs = st.permutations(range(MODELS)).map(lambda order: order[:2])
    scores = st.sampled_from((0.0, 0.5, 1.0))
    votes = st.lists(st.tuples(pairs, scores), min_size=1, max_size=30)
    return [Game(*pair, score) for pair, score in draw(votes)]


def elos(votes, models=MODELS, resamples=50):
    return [rating.elo for rating in ratings(votes, models, resamples)]


@given(games())
def test_the_mean_stays_and_an_interval_holds_its_rating(votes):
    found = ratings(votes, MODELS, 50)
    assert np.mean([rating.elo for rating in found]) == pytest.approx(1000, abs=1e-9)
    assert all(rating.low <= rating.elo <= rating.high for rating in found)
    silent = set(range(MODELS)) - {place for game in votes for place in game[:2]}
    assert all(found[place] == (1000, 1000, 1000) for place in silent)


@given(games(), st.integers(0, MODELS - 1))
def test_who_always_wins_is_first(votes, best):
    others = [place for place in range(MODELS) if place != best]
    votes = [game for game in votes if best not in game[:2]]
    found = elos(votes + [Game(best, other, 1.0) for other in others for _ in range(40)])
    assert max(found) == found[best] and sorted(found)[-2] < found[best]


@given(games(), st.permutations(range(MODELS)))
def test_swapping_names_or_sides_swaps_scores(votes, order):
    found = elos(votes)
    renamed = elos([Game(order[a], order[b], score) for a, b, score in votes])
    np.testing.assert_allclose([renamed[place] for place in order], found, atol=1e-9)
    turned = elos([Game(b, a, 1 - score) for a, b, score in votes])
    np.testing.assert_allclose(turned, found, atol=1e-9)


def test_ties_between_equals_leave_them_equal():
    found = ratings([Game(0, 1, 0.5)] * 30, 2)
    assert found[0] == found[1] == (1000, 1000, 1000)


def test_one_vote_moves_half_a_point_and_order_does_not_count():
    np.testing.assert_allclose(elos([Game(0, 1, 1.0)], 2), (1000.5, 999.5))
    votes = [Game(0, 1, 1.0)] * 20 + [Game(0, 1, 0.0)] * 20
    # One order would favour whoever won last; the mean over orders does not.
    found = ratings(votes, 2, 4000)
    assert found[0].elo == pytest.approx(1000, abs=0.02)
    assert found[0].low < 998 and found[0].high > 1002
    # A large gap takes as many votes as it should: 1 / (1 + 10^(gap / 400)) of a point each.
    gap = 0.0
    for _ in range(300):
        gap += 2 * (1 - 1 / (1 + math.pow(10, -gap / 400)))
    found = elos([Game(0, 1, 1.0)] * 300, 2, 3)
    assert found[0] - found[1] == pytest.approx(gap, rel=1e-9)


def test_a_pair_is_counted_whichever_side_it_was_on():
    votes = [Game(1, 0, 1.0), Game(0, 1, 1.0), Game(0, 1, 0.0), Game(0, 1, 0.5), Game(2, 0, 1.0)]
    first, second = win_rates(votes)
    assert first[:6] == (0, 1, 1, 1, 2, 1.5 / 4)
    assert second[:6] == (0, 2, 0, 0, 1, 0.0)


def test_intervals_are_wilsons():
    # Table I of Newcombe 1998, "Two-sided confidence intervals for the single proportion".
    np.testing.assert_allclose(wilson(81 / 263, 263), (0.2553, 0.3662), atol=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1.0, 1)[1] == 1.0

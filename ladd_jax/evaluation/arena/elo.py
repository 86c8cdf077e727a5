"""Elo and win rates of models, from votes on pairs of pictures.

This follows the user studies of adversarial diffusion distillation (Sauer et al. 2023, "Adversarial
Diffusion Distillation", appendix): all models start at 1,000 and K is 1. An Elo rating depends on
the order of games, but the order of votes means nothing, so ratings are averaged over random
orders.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

START, K = 1000.0, 1.0

_SCALE = 400.0
"""Points of Elo's logistic curve for odds of ten to one (Elo 1978)."""

_Z = 1.959963984540054
"""Number of standard deviations that 95% of a normal distribution lie within."""


class Game(NamedTuple):
    """One vote.

    Attributes:
      first: index of a model.
      second: index of another model.
      score: 1 if the first was better, 0 if the second was, 0.5 for a tie.
    """

    first: int
    second: int
    score: float


class Rating(NamedTuple):
    """Elo of a model, and its 95% interval."""

    elo: float
    low: float
    high: float


def ratings(
    games: Sequence[Game], models: int, resamples: int = 1000, seed: int = 0
) -> list[Rating]:
    """Elo of every model; their mean is 1,000.

    Args:
      games: the votes, in any order.
      models: how many models there are; one without votes stays at 1,000.
      resamples: number of random orders to average ratings over, and of resamples of the votes with
        replacement, each in its own order, whose percentiles are the interval (Efron 1979).
      seed: seed of both.
    """
    rng = np.random.default_rng(seed)
    count = len(games)
    orders = rng.permuted(np.tile(np.arange(count), (resamples, 1)), axis=1)
    drawn = rng.integers(0, max(count, 1), (resamples, count))
    means = _played(games, models, orders).mean(axis=0)
    ends = np.percentile(_played(games, models, drawn), (2.5, 97.5), axis=0)
    # With few votes the mean over orders may be outside of the interval by a rounding error.
    low, high = np.minimum(ends[0], means), np.maximum(ends[1], means)
    return [Rating(*map(float, row)) for row in zip(means, low, high, strict=True)]


def _played(games: Sequence[Game], models: int, places: np.ndarray) -> np.ndarray:
    """Ratings `[n, models]` after the games at places int `[n, games]`, one after the other."""
    found = np.full((len(places), models), START)
    if not games:
        return found
    pairs = np.array([(game.first, game.second) for game in games])
    scores = np.array([game.score for game in games])
    rows = np.arange(len(places))
    for column in places.T:
        first, second = pairs[column].T
        difference = found[rows, second] - found[rows, first]
        expected = 1 / (1 + 10 ** (difference / _SCALE))
        moved = K * (scores[column] - expected)
        # One gains what the other loses, so the mean over models stays the same.
        found[rows, first] += moved
        found[rows, second] -= moved
    return found


class WinRate(NamedTuple):
    """How often one model was better than another.

    Attributes:
      first: index of a model.
      second: index of another model, larger than the first.
      wins: votes for the first.
      ties: votes for neither.
      losses: votes for the second.
      rate: share of votes that the first won, counting a tie as half a win.
      low: lower end of its 95% interval, by Wilson (1927).
      high: upper end of the interval.
    """

    first: int
    second: int
    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float


def win_rates(games: Sequence[Game]) -> list[WinRate]:
    """The win rate of each pair of models that met, in the order of their indices."""
    scores: dict[tuple[int, int], list[float]] = {}
    for first, second, score in games:
        if first < second:
            scores.setdefault((first, second), []).append(score)
        else:
            scores.setdefault((second, first), []).append(1 - score)
    found = []
    for pair, own in sorted(scores.items()):
        rate = sum(own) / len(own)
        wins, ties, losses = (own.count(score) for score in (1, 0.5, 0))
        found.append(WinRate(*pair, wins, ties, losses, rate, *wilson(rate, len(own))))
    return found


def wilson(rate: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` votes (Wilson 1927); ties make it too wide."""
    middle = (rate + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2))
    width = _Z / (1 + _Z**2 / count) * spread
    return max(middle - width, 0.0), min(middle + width, 1.0)

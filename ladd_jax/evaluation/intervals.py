"""How sure a metric is, from the pictures that it was measured on (Efron 1979)."""

import math
from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.metrics.base import Measure
from ladd_jax.evaluation.seen import Seen

_WIDTH = 1.96


def measure_with_interval(
    measure: Measure, samples: Sequence[Seen], reference: Sequence[Seen], resamples: int, seed: int
) -> tuple[float, tuple[float, float]] | None:
    """A metric and its 95% interval by the bootstrap.

    Pictures of samples and reference are drawn with replacement, among those of one prompt: how
    many pictures a prompt has is chosen, and not by chance. Where some prompt has a single picture,
    as real ones may, all pictures are drawn from. Distances between sets grow when pictures repeat,
    so the interval takes its width from the resamples and its place from the metric: value +- 1.96
    standard deviations, corrected for the few pictures of a prompt (Rao & Wu 1988).

    Args:
      measure: the metric.
      samples: what is measured, one for each bucket.
      reference: what they are compared with, in the same buckets.
      resamples: number of resamples; below 2 the interval has no width.
      seed: seed of what is drawn.

    Returns:
      The value and the interval's ends, or None where there is nothing to measure on.
    """
    value = measure(samples, reference)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    strata = {id(part): _strata(part) for part in (*samples, *reference)}

    def again(parts: Sequence[Seen]) -> list[Seen]:
        drawn = []
        for part in parts:
            index = [rng.choice(places, len(places)) for places in strata[id(part)]]
            drawn.append(part.take(np.concatenate(index)))
        return drawn

    resampled = [measure(again(samples), again(reference)) for _ in range(resamples)]
    values = [float(found) for found in resampled if found is not None]
    # A single picture has no interval, whatever the correction.
    size = max(2.0, np.mean([len(places) for part in samples for places in strata[id(part)]]))
    error = float(np.std(values, ddof=1)) * math.sqrt(size / (size - 1)) if len(values) > 1 else 0.0
    return value, (value - _WIDTH * error, value + _WIDTH * error)


def _strata(part: Seen) -> list[np.ndarray]:
    """The places of each prompt's pictures, or of all in one where a prompt has a single one."""
    _, groups = np.unique(part.prompts, return_inverse=True)
    places = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    return places if min(map(len, places)) > 1 else [np.arange(len(groups))]

"""How sure a metric is, from the pictures that it was measured on (Efron 1979)."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.metrics.base import Measure
from ladd_jax.evaluation.seen import Seen

_WIDTH = 1.96


def measure_with_interval(
    measure: Measure, samples: Sequence[Seen], reference: Sequence[Seen], resamples: int, seed: int
) -> tuple[float, tuple[float, float]] | None:
    """A metric and its 95% interval by the bootstrap.

    Pictures of samples and reference are drawn with replacement. Distances between sets grow when
    pictures repeat, so the interval takes its width from the resamples and its place from the
    metric: value +- 1.96 standard deviations.

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

    def again(parts: Sequence[Seen]) -> list[Seen]:
        return [part.take(rng.integers(0, len(part.images), len(part.images))) for part in parts]

    drawn = [measure(again(samples), again(reference)) for _ in range(resamples)]
    values = [float(found) for found in drawn if found is not None]
    width = _WIDTH * float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return value, (value - width, value + width)

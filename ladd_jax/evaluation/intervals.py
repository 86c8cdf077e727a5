"""How sure a metric is, from the pictures that it was measured on (Efron 1979)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ladd_jax.evaluation.metrics.base import Metric
from ladd_jax.evaluation.seen import Seen

_WIDTH = 1.96


def measure_with_intervals(
    metrics: Mapping[str, Metric],
    samples: Sequence[Seen],
    reference: Sequence[Seen],
    resamples: int,
    seed: int,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Metrics and their 95% intervals by the bootstrap, given the prompts.

    The intervals tell how metrics would vary with other pictures of the same prompts, and not with
    other prompts: pictures are drawn with replacement among those of one prompt, since how many a
    prompt has is chosen. Where some prompt has a single picture, as real ones may, all pictures
    are drawn from. Samples and reference are drawn in turn while the other set stays, and their
    variances, each corrected for the few pictures that are drawn from (Rao & Wu 1988), are added.
    Distances between sets grow when pictures repeat, so an interval takes its width from the
    resamples and its place from the metric: value +- 1.96 standard deviations.

    Args:
      metrics: by name.
      samples: what is measured, one for each bucket.
      reference: what they are compared with, in the same buckets; metrics whose `reference` is
        empty do not look at it.
      resamples: number of resamples of each set, the same for all metrics; below 2 the intervals
        have no width.
      seed: seed of what is drawn.

    Returns:
      The values and the intervals' ends, by name, of the metrics that there is something to measure
      on.
    """
    found = {name: metric.measure(samples, reference) for name, metric in metrics.items()}
    values = {name: float(value) for name, value in found.items() if value is not None}
    there = {name: metrics[name] for name in values}
    compared = {name: metric for name, metric in there.items() if metric.reference}
    rng = np.random.default_rng(seed)
    variances = [
        _variances(there, samples, lambda m, drawn: m.measure(drawn, reference), resamples, rng),
        _variances(compared, reference, lambda m, drawn: m.measure(samples, drawn), resamples, rng),
    ]
    intervals = {}
    for name, value in values.items():
        width = _WIDTH * math.sqrt(sum(variance.get(name, 0.0) for variance in variances))
        intervals[name] = (value - width, value + width)
    return values, intervals


def _variances(
    metrics: Mapping[str, Metric],
    parts: Sequence[Seen],
    measure: Callable[[Metric, Sequence[Seen]], float | None],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Variances of metrics as one of their sets is drawn again and again."""
    if resamples < 2 or not metrics:
        return {}
    strata = [_Strata.of(part) for part in parts]
    looked_at = any(metric.pixels for metric in metrics.values())
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(resamples):
        places = [each.draw(rng) for each in strata]
        drawn = [part.take(index, looked_at) for part, index in zip(parts, places, strict=True)]
        for name, metric in metrics.items():
            value = measure(metric, drawn)
            if value is not None:
                found[name].append(float(value))
    # A single picture has no interval, whatever the correction.
    size = max(2.0, float(np.mean(np.concatenate([each.sizes for each in strata]))))
    return {
        name: float(np.var(values, ddof=1)) * size / (size - 1)
        for name, values in found.items()
        if len(values) > 1
    }


class _Strata(NamedTuple):
    """The places of each prompt's pictures, or of all in one where a prompt has a single one.

    Attributes:
      order: places int `[n]`, those of a stratum one after the other.
      starts: where each stratum begins in `order`.
      sizes: number of pictures of each stratum.
    """

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, part: Seen) -> "_Strata":
        _, groups, sizes = np.unique(part.prompts, return_inverse=True, return_counts=True)
        if sizes.min() < 2:
            groups, sizes = np.zeros_like(groups), np.array([len(groups)])
        return cls(np.argsort(groups, kind="stable"), np.cumsum(sizes) - sizes, sizes)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As many places of each stratum as it has, with replacement."""
        starts, sizes = (np.repeat(each, self.sizes) for each in (self.starts, self.sizes))
        return self.order[starts + rng.integers(0, sizes)]

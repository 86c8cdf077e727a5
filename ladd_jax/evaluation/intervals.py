"""Confidence intervals of metrics by the bootstrap over pictures (Efron 1979)."""

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

    The intervals tell how metrics would vary with other pictures of the same prompts, but not with
    other prompts: pictures are resampled within each prompt, since the number of pictures of a
    prompt is not random. If some prompt has a single picture, as real ones may, pictures are drawn
    from all prompts together. One set, samples or reference, is resampled while the other stays,
    and the two variances are added, each corrected for the few pictures that it is drawn from (Rao
    & Wu 1988). Distances between sets grow when pictures repeat, so an interval takes only its
    width from the resamples, and its centre from the metric: value +- 1.96 standard deviations.

    Args:
      metrics: the metrics, by name.
      samples: the pictures to measure, one `Seen` for each bucket.
      reference: the pictures that they are compared with, in the same buckets; metrics whose
        `reference` is empty ignore it.
      resamples: number of resamples of each set, shared by all metrics; below 2 the intervals have
        no width.
      seed: seed of the resamples.

    Returns:
      the values and the intervals' ends, by name; metrics without anything to measure are left out.
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
    """Variances of metrics when one of the two sets is resampled."""
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
    # The correction is not defined for a single picture, which has no interval anyway.
    size = max(2.0, float(np.mean(np.concatenate([each.sizes for each in strata]))))
    return {
        name: float(np.var(values, ddof=1)) * size / (size - 1)
        for name, values in found.items()
        if len(values) > 1
    }


class _Strata(NamedTuple):
    """The indices of each prompt's pictures, or a single stratum if some prompt has one picture.

    Attributes:
      order: indices int `[n]`, with those of a stratum adjacent.
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
        """Draws as many indices from each stratum as it has, with replacement."""
        starts, sizes = (np.repeat(each, self.sizes) for each in (self.starts, self.sizes))
        return self.order[starts + rng.integers(0, sizes)]

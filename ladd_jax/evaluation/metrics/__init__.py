"""Metrics by name, each measured in a file of its own.

To add one, write its file and give it an entry here; `evaluate.metrics` of a config chooses.
"""

from ladd_jax.evaluation.metrics import alignment, contrast, diversity, frechet
from ladd_jax.evaluation.metrics.base import Metric

METRICS = {
    "fd": Metric(
        "FD",
        frechet.measure,
        "Fréchet distance of features to held-out samples of the data generator, which is what the "
        "student is asked to match; as a multiple of the floor, which the generator's own samples "
        "have from each other",
        ratio="generator",
    ),
    "fd_real": Metric(
        "FD real",
        frechet.measure,
        "Fréchet distance to held-out real pictures; guidance moves the generator away from them",
        reference="real",
        ratio="teacher",
    ),
    "alignment": Metric(
        "alignment",
        alignment.measure,
        "share of pictures that show what their prompt says",
        ratio="teacher",
    ),
    "diversity": Metric(
        "diversity",
        diversity.measure,
        "mean distance of the features of two samples of a prompt",
        ratio="generator",
    ),
    "deviation": Metric(
        "contrast",
        contrast.deviation,
        "standard deviation of all values",
        ratio="generator",
    ),
    "outside": Metric(
        "outside",
        contrast.outside,
        f"share of values outside of the range that the generator leaves in "
        f"{contrast.LEFT_OUT:.0%}",
    ),
}
"""By the name that `metrics.json` has."""

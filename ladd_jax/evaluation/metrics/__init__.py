"""Metrics by name, each measured in a file of its own.

To add one, write its file and give it an entry here; `evaluate.metrics` of a config chooses.
"""

from ladd_jax.evaluation.metrics import (
    alignment,
    contrast,
    diversity,
    frechet,
    kernel,
    precision_recall,
)
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
    "kid": Metric(
        "KID x 1000",
        kernel.measure_kid,
        "kernel inception distance, which small sets do not raise; around 0 for the same "
        "distribution, and below it as often as above",
    ),
    "cmmd": Metric(
        "CMMD",
        kernel.measure_cmmd,
        "discrepancy of CLIP's features, each of length 1, under a kernel that takes them for no "
        "Gaussian",
        ratio="generator",
    ),
    "precision": Metric(
        "precision",
        precision_recall.measure_precision,
        "share of samples that lie among those that they are compared with",
    ),
    "recall": Metric(
        "recall",
        precision_recall.measure_recall,
        "share of those that they are compared with that lie among the samples",
    ),
    "alignment": Metric(
        "alignment",
        alignment.measure,
        "how well pictures fit their prompts: the share that shows what they say, or a CLIP's "
        "score",
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

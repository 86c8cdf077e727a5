"""Metrics by name, each measured in a file of its own.

To add one, write its file and give it an entry here; `evaluate.metrics` of a config chooses.
"""

from ladd_jax.evaluation.metrics import (
    alignment,
    contrast,
    diversity,
    edits,
    frechet,
    kernel,
    precision_recall,
)
from ladd_jax.evaluation.metrics.base import Metric
from ladd_jax.evaluation.metrics.per_picture import mean_of, root_mean_of

METRICS = {
    "fd": Metric(
        "FD",
        frechet.measure,
        "Fréchet distance of features to held-out samples of the data generator, as a multiple of "
        "the floor, which the generator's own samples have from each other, and of the untrained "
        "student's at the same steps",
        ratios={"/ floor": "generator", "/ untrained": "untrained"},
    ),
    "fd_real": Metric(
        "FD real",
        frechet.measure,
        "Fréchet distance to held-out real pictures; guidance moves the generator away from them",
        reference="real",
        ratios={"/ teacher": "teacher"},
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
        ratios={"/ floor": "generator"},
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
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    edits.EDIT_ERROR: Metric(
        "edit error",
        mean_of(edits.EDIT_ERROR),
        "of edits, the root mean square distance of a picture to the true edited one, of values in "
        "[-1, 1]",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    edits.KEPT_ERROR: Metric(
        "kept error",
        mean_of(edits.KEPT_ERROR),
        "of edits, the root mean square distance of a picture to the one that was edited, where "
        "the true edit has left that as it was",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "diversity": Metric(
        "diversity",
        diversity.measure,
        "mean distance of the features of two samples of a prompt",
        reference="",
        ratios={"/ generator": "generator"},
    ),
    "deviation": Metric(
        "contrast",
        contrast.deviation,
        "standard deviation of all values",
        reference="",
        ratios={"/ generator": "generator"},
        pixels=True,
    ),
    "outside": Metric(
        "outside",
        contrast.outside,
        f"share of values outside of the range that holds {1 - contrast.LEFT_OUT:.0%} of the "
        f"generator's values",
        pixels=True,
    ),
    "masked_distance": Metric(
        "distance",
        mean_of("distance"),
        "mean distance of the features of a completed picture to those of the picture itself, from "
        "which it differs in the hole alone",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "masked_error": Metric(
        "error in the hole",
        root_mean_of("masked"),
        "root mean square of what a completed picture is off in the hole",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "known_error": Metric(
        "known error",
        root_mean_of("known"),
        "root mean square of what a sample is off around the hole, before the known pixels are put "
        "back, which leaves none of it",
        reference="",
    ),
}
"""By the name that `metrics.json` has."""

"""Metrics by name, each measured in a file of its own.

To add one, write its file and add an entry here; `evaluate.metrics` of a config selects metrics.
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
        "Fréchet distance of features to held-out samples of the data generator, also as a "
        "multiple of the floor, the distance between two sets of the generator's own samples, and "
        "of the untrained student's distance at the same steps",
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
        "kernel inception distance, which has no bias for small sets; for equal distributions it "
        "is around 0, and below as often as above",
    ),
    "cmmd": Metric(
        "CMMD",
        kernel.measure_cmmd,
        "discrepancy of CLIP's features, each of length 1, under a kernel that does not assume "
        "that they are Gaussian",
        ratios={"/ floor": "generator"},
    ),
    "precision": Metric(
        "precision",
        precision_recall.measure_precision,
        "share of samples that lie within the set that they are compared with",
    ),
    "recall": Metric(
        "recall",
        precision_recall.measure_recall,
        "share of the set that samples are compared with that lies within the samples",
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
        "for edits, the root mean square distance of a picture to the true edit, of values in "
        "[-1, 1]",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    edits.KEPT_ERROR: Metric(
        "kept error",
        mean_of(edits.KEPT_ERROR),
        "for edits, the root mean square distance of a picture to its source, at the pixels that "
        "the true edit leaves unchanged",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "diversity": Metric(
        "diversity",
        diversity.measure,
        "mean distance between the features of two samples of the same prompt",
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
        f"share of values outside the range that holds {1 - contrast.LEFT_OUT:.0%} of the "
        f"generator's values",
        pixels=True,
    ),
    "masked_distance": Metric(
        "distance",
        mean_of("distance"),
        "mean distance between the features of a completed picture and of the original, which "
        "differ only in the hole",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "masked_error": Metric(
        "error in the hole",
        root_mean_of("masked"),
        "root mean square error of a completed picture in the hole",
        reference="",
        ratios={"/ teacher": "teacher"},
    ),
    "known_error": Metric(
        "known error",
        root_mean_of("known"),
        "root mean square error of a sample around the hole, before the known pixels are put back "
        "and remove it",
        reference="",
    ),
}
"""All metrics, by their names in `metrics.json`."""

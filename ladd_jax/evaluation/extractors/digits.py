"""The digits' own extractor: a classifier that looks at each scan of a picture."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.data import digits
from ladd_jax.data.buckets import Bucket
from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.judge import Judge, train_judge


class DigitScans:
    """Features of each scan, and whether all the digits that a prompt names are read."""

    def __init__(self, judge: Judge):
        self._judge = judge

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; a picture has one part or two, its scans in reading order."""
        scans = digits.crops(images, Bucket(*images.shape[1:3]))
        flat = scans.reshape(-1, 8, 8, 1)
        features = self._judge.features(flat).reshape(*scans.shape[:2], -1)
        read = self._judge.labels(flat).reshape(scans.shape[:2])
        wanted = np.array([digits.prompt_labels(prompt) for prompt in prompts])
        return features, np.all(read == wanted, axis=1).astype(np.float64)


def open_extractor(given: Given) -> Extractor:
    """A judge trained on the scans of the training split."""
    train, _ = digits.load(given.seed)
    return DigitScans(train_judge(train.images, train.labels, given.seed))

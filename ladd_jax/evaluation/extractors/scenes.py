"""The extractor of scenes: finds the scans in a picture, and reads their digits and colours."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.data import digits
from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.scenes import Reader, train_reader


class Scenes:
    """Features of the scans found, and whether a picture shows everything that its prompt says."""

    def __init__(self, reader: Reader):
        self._reader = reader

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; a picture is one part."""
        agreement = self._reader.agreement(images, prompts)["all"]
        return self._reader.features(images)[:, None], agreement.astype(np.float64)


def open_extractor(given: Given) -> Extractor:
    """A reader trained on the scans of the training split."""
    train, _ = digits.load(given.seed)
    return Scenes(train_reader(train, given.seed))

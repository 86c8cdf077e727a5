"""The scenes' own extractor: finds the scans of a picture, reads them, their colours and places."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.data import digits
from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.scenes import Reader, train_reader


class Scenes:
    """Features of the scans that are found, and whether the picture shows all that it should."""

    def __init__(self, reader: Reader):
        self._reader = reader

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; a picture is one part."""
        agreement = self._reader.agreement(images, prompts)["all"]
        return self._reader.features(images)[:, None], agreement.astype(np.float64)


def open_extractor(given: Given) -> Extractor:
    """A reader that has learnt the scans of the training split."""
    train, _ = digits.load(given.seed)
    return Scenes(train_reader(train, given.seed))

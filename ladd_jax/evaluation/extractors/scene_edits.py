"""The extractor of edits of scenes: reads a picture together with the source it was made from."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.data import digits
from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import EditExtractor
from ladd_jax.evaluation.scene_edits import agreement
from ladd_jax.evaluation.scenes import Reader, train_reader


class SceneEdits:
    """Features of the scans found, and whether a picture is its source edited as instructed."""

    def __init__(self, reader: Reader):
        self._reader = reader

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, None]:
        """See `Extractor`; a picture is one part, and without its source has no alignment."""
        del prompts
        return self._reader.features(images)[:, None], None

    def look_at_edits(
        self, images: np.ndarray, prompts: Sequence[str], sources: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `EditExtractor`."""
        right = agreement(self._reader, images, prompts, sources)["all"]
        return self.look(images, prompts)[0], right.astype(np.float64)


def open_extractor(given: Given) -> EditExtractor:
    """A reader trained on the scans of the training split."""
    train, _ = digits.load(given.seed)
    return SceneEdits(train_reader(train, given.seed))

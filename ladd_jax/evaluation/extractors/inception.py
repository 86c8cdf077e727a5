"""FID's Inception-v3: the features in which Fréchet distances of pictures are published."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.extractors.batches import Batched, rgb_bytes
from ladd_jax.models.inception import resize
from ladd_jax.weights.inception import load_inception

_BATCH = 32


class InceptionExtractor:
    """Features of the last pooling layer, F = 2048, of the picture as a whole. It reads no text.

    Pictures are rounded to bytes, as if read from a PNG, and resized to 299 x 299 by the bilinear
    filter of TensorFlow 1, which FID's own code and torch-fidelity use. Distances with another
    resize are not comparable (Parmar et al. 2022).
    """

    def __init__(self, path: str, mesh: Mesh, batch_size: int = _BATCH):
        """Reads the weights.

        Args:
          path: file of weights, see `load_inception`.
          mesh: mesh that the network runs on.
          batch_size: pictures at once.

        Raises:
          NotFoundError: there is no such file.
          UserError: the file is damaged, or belongs to another network.
        """
        self._features = Batched(*load_inception(path, mesh), mesh, batch_size)
        # A program of its own, so that only it is compiled again for pictures of another size.
        self._resize = Batched(lambda _, pictures: resize(pictures), {}, mesh, batch_size)
        self._batch = batch_size

    def look(self, images: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, None]:
        """See `Extractor`."""
        del prompts
        parts = [images[i : i + self._batch] for i in range(0, len(images), self._batch)]
        features = [self._features(self._resize(rgb_bytes(part))) for part in parts]
        return np.concatenate(features).astype(np.float64)[:, None], None


def open_extractor(given: Given) -> Extractor:
    """The extractor with the weights of `given.path`."""
    return InceptionExtractor(given.path, given.mesh)

"""What an extractor is: a way to look at pictures."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Extractor(Protocol):
    """Looks at pictures, in which it finds P parts (most: one, the whole) of F features each."""

    def look(
        self, images: np.ndarray, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What metrics are measured on.

        Args:
          images: float32 `[n, H, W, C]`, in [-1, 1] but for what a network draws beyond.
          prompts: one for each picture.

        Returns:
          float64 features `[n, P, F]`, and how well each picture fits its prompt, float64 `[n]`,
          or None where the extractor reads no text.
        """
        ...


@runtime_checkable
class EditExtractor(Extractor, Protocol):
    """An extractor that tells how well a picture fits an instruction only beside its source."""

    def look_at_edits(
        self, images: np.ndarray, prompts: Sequence[str], sources: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As `look`, where the pictures are edits.

        Args:
          images: float32 `[n, H, W, C]`, in [-1, 1] but for what a network draws beyond.
          prompts: the instructions, one for each picture.
          sources: the pictures that were edited, as `images`.
        """
        ...

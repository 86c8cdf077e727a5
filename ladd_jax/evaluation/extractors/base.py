"""The interface of extractors, which compute features and alignment of pictures."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Extractor(Protocol):
    """Looks at pictures and finds P parts with F features each; mostly one part, the picture."""

    def look(
        self, images: np.ndarray, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The features and alignment that metrics are measured on.

        Args:
          images: float32 `[n, H, W, C]`, in [-1, 1] except where a network exceeds the range.
          prompts: the prompt of each picture.

        Returns:
          float64 features `[n, P, F]`, and how well each picture fits its prompt, float64 `[n]`,
          or None where the extractor reads no text.
        """
        ...


@runtime_checkable
class EditExtractor(Extractor, Protocol):
    """An extractor that needs a picture's source to tell how well it fits an instruction."""

    def look_at_edits(
        self, images: np.ndarray, prompts: Sequence[str], sources: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Does what `look` does, for pictures that are edits.

        Args:
          images: float32 `[n, H, W, C]`, in [-1, 1] except where a network exceeds the range.
          prompts: the instruction of each picture.
          sources: the pictures that were edited, in the form of `images`.
        """
        ...

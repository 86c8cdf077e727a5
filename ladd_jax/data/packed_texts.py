"""Many texts in little memory."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedTexts(Sequence[str]):
    """Texts as one block of UTF-8, with 8 bytes of overhead for each.

    A list of strings has some 60 bytes of overhead for each; ten million prompts would not fit in
    2 GB.
    """

    def __init__(self, texts: Iterable[str]):
        """Takes the texts one at a time, so that an iterator over a file is never held whole."""
        block, ends = bytearray(), array("q", [0])
        for text in texts:
            block += text.encode()
            ends.append(len(block))
        self._block, self._ends = block, np.frombuffer(ends, np.int64)
        self._places: np.ndarray | None = None

    def take(self, places: np.ndarray) -> "PackedTexts":
        """The texts at some places, int `[n]`; the block is shared, not copied."""
        taken = PackedTexts(())
        taken._block, taken._ends = self._block, self._ends
        taken._places = places if self._places is None else self._places[places]
        return taken

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = range(len(self))[index]
        if isinstance(found, range):
            return [self[place] for place in found]
        place = found if self._places is None else int(self._places[found])
        return self._block[self._ends[place] : self._ends[place + 1]].decode()

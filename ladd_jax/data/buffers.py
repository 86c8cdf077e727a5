"""Memory of large arrays that is used again.

A fresh page is cleared by the system before it is written, which takes longer than the copy into
it.
"""

import contextlib
import math
import mmap
import weakref
from collections import deque
from typing import Any

import numpy as np

_LARGE = 2**20
_PAGE = 2**21


class Buffers:
    """Makes arrays, in memory of earlier ones that nothing refers to any more.

    JAX refers to an array that it was given until it is copied, or for as long as it uses it as it
    is. So no one says when an array is done with.
    """

    def __init__(self, keep: int = 16):
        """Starts without memory; `keep` is how many pieces of it wait to be used again at most."""
        self._free: deque[mmap.mmap] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array with any values."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LARGE:
            return np.empty(shape, dtype)
        memory = self._take(size)
        array: np.ndarray = np.ndarray(shape, dtype, memory)
        # Views of the array refer to it and not to the memory, which is no array.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array

    def _take(self, size: int) -> mmap.mmap:
        for memory in list(self._free):
            if size <= len(memory) <= 2 * size:
                # Another thread may have taken it.
                with contextlib.suppress(ValueError):
                    self._free.remove(memory)
                    return memory
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, flags=flags)
        # Fewer pages, and fewer faults, on a Linux that has large ones.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

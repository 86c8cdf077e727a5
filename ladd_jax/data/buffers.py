"""Memory of large arrays that is used again.

The system clears a fresh page before it is written, which takes longer than the copy into it.
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
    """Makes arrays in the memory of earlier ones that nothing refers to any more.

    JAX keeps a reference to an array that it was given until it has copied it, or for as long as
    it uses the array in place. So there is no call to free one: losing its last reference does.
    """

    def __init__(self, keep: int = 16):
        """Starts without memory; at most `keep` pieces are kept to be used again."""
        self._free: deque[mmap.mmap] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array whose values are not set."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _LARGE:
            return np.empty(shape, dtype)
        memory = self._take(size)
        array: np.ndarray = np.ndarray(shape, dtype, memory)
        # Views of the array keep it alive, since they refer to it: the memory is not an array.
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
        # Huge pages, where the system has them, mean fewer page faults.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

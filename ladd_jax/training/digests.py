"""Digests of arrays, which show whether a restored array is the one that was saved."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_LARGE = 2**20


def digests(leaves: dict[str, jax.Array]) -> dict[str, str]:
    """A digest of each array, 16 hexadecimal digits, the same on every mesh and process.

    The bits of each element times an odd number that follows from its place are summed modulo 2^32,
    twice, with other odd numbers. So a change of one element always shows, and other changes nearly
    always. Each part of an array is summed on the device where it lies.

    Args:
      leaves: arrays of up to 4 bytes an element, by name.
    """
    parts = [
        [_part(shard.data, leaf.shape, shard.index) for shard in leaf.addressable_shards
         if shard.replica_id == 0]
        for leaf in leaves.values()
    ]  # fmt: skip
    sums = np.zeros((len(leaves), 2), np.uint32)
    for i, part in enumerate(parts):
        for each in part:
            sums[i] += np.asarray(each)
    # An array on a mesh of this process alone is whole here; each process may have its own.
    shared = np.array([not leaf.is_fully_addressable for leaf in leaves.values()])
    if shared.any():
        sums[shared] = multihost_utils.process_allgather(sums[shared]).sum(0, dtype=np.uint32)
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in zip(leaves, sums, strict=True)}


def _part(data: jax.Array, whole: tuple[int, ...], index: tuple[slice, ...]) -> Any:
    """The sums of a part of an array, at its place in the whole: uint32 `[2]`."""
    starts = np.array([part.start or 0 for part in index], np.uint32)
    strides = [math.prod(whole[axis + 1 :]) % 2**32 for axis in range(len(whole))]
    # Compiling a program for a shape takes longer than fetching a small array.
    if data.size < _LARGE:
        return _sums(np.asarray(data), starts, np.array(strides, np.uint32), np)
    return _program(data, starts, np.array(strides, np.uint32))


def _sums(data: Any, starts: Any, strides: Any, library: Any = jnp) -> Any:
    """The sums, by NumPy or by a program of JAX."""
    bits = data.view(_UNSIGNED[data.dtype.itemsize]).astype(np.uint32)
    place = library.zeros((), np.uint32)
    for axis, size in enumerate(data.shape):
        along = (library.arange(size, dtype=np.uint32) + starts[axis]) * strides[axis]
        place = place + along.reshape(-1, *[1] * (data.ndim - axis - 1))
    # The finalizer of MurmurHash3, so that neighbours have nothing in common.
    mixed = (place ^ (place >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    first = (mixed ^ (mixed >> 16)) | np.uint32(1)
    second = ((first ^ (first >> 15)) * np.uint32(0x9E3779B1)) | np.uint32(1)
    return library.stack([(bits * odd).sum(dtype=np.uint32) for odd in (first, second)])


_program = jax.jit(_sums)

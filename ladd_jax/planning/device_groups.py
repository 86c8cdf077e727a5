"""The groups of devices that a collective runs among, and the mesh axes that they span."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

Group = tuple[int, ...]
"""Devices by their place in the mesh."""


def parse_groups(attributes: str) -> list[Group]:
    """The groups of a collective from its attributes; none if it runs among all devices.

    HLO writes them as lists, as a reshaped count (`[2,4]<=[4,2]T(1,0)`), or as the axes of a mesh
    of its own (`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`).
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        return [_integers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return [_integers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if counted:
        ids = _count(counted[2], counted[3]).reshape(_integers(counted[1]))
        return [tuple(map(int, row)) for row in ids.reshape(-1, ids.shape[-1])]
    meshed = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[?([^)\]]*)\]?(?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        attributes,
    )
    if meshed:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", meshed[1])}
        ids = np.arange(math.prod(sizes.values()))
        if meshed[2]:
            ids = _count(meshed[2], meshed[3])
        return _along(ids, sizes, meshed[4])
    return []


def spanned_axes(groups: Sequence[Group], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ.

    Args:
      groups: the groups of devices of a collective; none means all devices together.
      mesh: sizes of the axes, in the order in which the mesh's devices are.
    """
    if not groups:
        return tuple(axis for axis, size in mesh.items() if size > 1)
    places = np.unravel_index(np.asarray(list(itertools.chain(*groups))), tuple(mesh.values()))
    lengths = [len(group) for group in groups]
    starts = np.cumsum([0, *lengths[:-1]])
    return tuple(
        axis
        for axis, place in zip(mesh, places, strict=True)
        if any(
            np.ptp(place[start : start + length])
            for start, length in zip(starts, lengths, strict=True)
        )
    )


def _along(ids: np.ndarray, sizes: Mapping[str, int], names: str) -> list[Group]:
    """Groups of a mesh's devices along some of its axes, or parts of axes (`'a':(2)4`)."""
    chosen: list[int] = []
    shape: list[int] = []
    for name, size in sizes.items():
        match = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", names)
        if match and match[1]:
            before, part = int(match[1]), int(match[2])
            chosen.append(len(shape) + 1)
            shape += [before, part, size // (before * part)]
        else:
            if match:
                chosen.append(len(shape))
            shape.append(size)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    width = math.prod(shape[axis] for axis in chosen)
    rows = ids.reshape(shape).transpose(rest + chosen).reshape(-1, width)
    return [tuple(map(int, row)) for row in rows]


def _count(sizes: str, order: str | None) -> np.ndarray:
    shape = _integers(sizes)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_integers(order)) if order else ids).reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))

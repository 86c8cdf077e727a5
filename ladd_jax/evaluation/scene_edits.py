"""Reads edits of scenes: whether a picture shows its source edited as instructed.

The source is read like the picture, by rules and a classifier of single scans. The classifier need
not be right, as long as it takes a scan for the same digit in both.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from ladd_jax.data.scene_edits import DIRECTIONS, MOVE, RECOLOUR, REMOVE, STEP, Edit, parse
from ladd_jax.errors import UserError
from ladd_jax.evaluation.scans import Scan
from ladd_jax.evaluation.scenes import Reader

MEASURES = ("followed", "unchanged", "all")
"""What `agreement` tells of a picture."""

# Tolerances: of the place of a scan's centre, in pixels, and of each channel of the background, in
# [0, 1], relative to the source.
_NEAR, _SAME_GROUND = 2.0, 0.1

# A scan as it is read: its digit, the name of its colour, and its centre.
_Read = tuple[int, str | None, tuple[float, float]]


def agreement(
    reader: Reader, images: np.ndarray, instructions: Sequence[str], sources: np.ndarray
) -> dict[str, np.ndarray]:
    """Which pictures are their sources edited as instructed.

    - `followed`: the scan that is meant has its new colour or place and is otherwise as before, or
      is gone.
    - `unchanged`: every other scan has the digit, the colour and the place that it had, there is no
      additional scan, and the background is the same.
    - `all`: both.

    Args:
      reader: reader of the scans.
      images: float32 `[n, H, W, 3]` in [-1, 1].
      instructions: the instruction for each picture.
      sources: the pictures that were edited, in the form of `images`.

    Returns:
      bool `[n]` for each of `MEASURES`.

    Raises:
      UserError: there is not one instruction and one source for each picture, or a text is not an
        instruction.
    """
    if {len(instructions), len(sources)} != {len(images)}:
        raise UserError(
            f"{len(images)} pictures, {len(instructions)} instructions and {len(sources)} sources: "
            f"give one of each for each picture"
        )
    edits = [parse(text) for text in instructions]
    read = zip(reader.read(images), reader.read(sources), edits, strict=True)
    rows = []
    for (found, ground), (before, old_ground), edit in read:
        followed, unchanged = _compare(_plain(found), _plain(before), edit)
        unchanged &= bool(np.all(np.abs(ground - old_ground) <= _SAME_GROUND))
        rows.append((followed, unchanged, followed and unchanged))
    values = np.array(rows, bool).reshape(-1, len(MEASURES))
    return dict(zip(MEASURES, values.T, strict=True))


def _plain(found: Sequence[tuple[int, Scan]]) -> list[_Read]:
    return [(digit, scan.colour_name, scan.place) for digit, scan in found]


def _compare(found: list[_Read], before: list[_Read], edit: Edit) -> tuple[bool, bool]:
    """Whether the edit was followed, and whether the other scans are as they were."""
    if not before:
        return False, False
    meant = max(before, key=lambda scan: _fit(scan, edit))
    others = [scan for scan in before if scan is not meant]
    wanted = _edited(meant, edit)
    best = max(
        (
            tuple(_is_same(scan, place) for scan, place in zip(chosen, others, strict=True))
            for chosen in itertools.permutations(found, len(others))
        ),
        key=sum,
        default=(False,),
    )
    kept = all(best)
    if wanted is None:
        # A scan found near its place is the one that should be gone.
        followed = not any(_is_near(scan, meant) for scan in found)
        return followed, kept and len(found) == len(others) + (not followed)
    followed = any(_is_same(scan, wanted) for scan in found)
    return followed, kept and len(found) == len(before)


def _edited(scan: _Read, edit: Edit) -> _Read | None:
    """The scan after the edit; None if it should be gone."""
    digit, colour, (row, column) = scan
    if edit.kind == REMOVE:
        return None
    if edit.kind == RECOLOUR:
        return digit, edit.to, (row, column)
    assert edit.kind == MOVE
    rows, columns = DIRECTIONS[edit.to]
    return digit, colour, (row + STEP * rows, column + STEP * columns)


def _fit(scan: _Read, edit: Edit) -> int:
    """How many of digit and colour match the words of the instruction."""
    return (edit.item.digit in (None, scan[0])) + (edit.item.colour in (None, scan[1]))


def _is_same(scan: _Read, wanted: _Read) -> bool:
    return scan[:2] == wanted[:2] and _is_near(scan, wanted)


def _is_near(scan: _Read, wanted: _Read) -> bool:
    return all(abs(a - b) <= _NEAR for a, b in zip(scan[2], wanted[2], strict=True))

"""Reads edits of scenes: whether a picture shows what an instruction makes of its source.

The source is read as the picture is, by rule and by one classifier of single scans. It need not be
right: it is enough that a scan is taken for the same digit in both.
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

# Pixels that a scan's centre may be away from its place, and of each channel of the background, in
# [0, 1], how far it may be from the source's.
_NEAR, _SAME_GROUND = 2.0, 0.1

# A scan as it is read: its digit, the name of its colour, and its centre.
_Read = tuple[int, str | None, tuple[float, float]]


def agreement(
    reader: Reader, images: np.ndarray, instructions: Sequence[str], sources: np.ndarray
) -> dict[str, np.ndarray]:
    """Which pictures are what their instructions make of their sources.

    - `followed`: the scan that is meant has its new colour or place, with its old digit and all
      else, or is gone.
    - `unchanged`: every other scan has the digit, the colour and the place that it had, there is no
      further one, and the background is the same.
    - `all`: both.

    Args:
      reader: reads the scans.
      images: float32 `[n, H, W, 3]` in [-1, 1].
      instructions: of edits, one for each picture.
      sources: the pictures that were edited, as `images`.

    Returns:
      bool `[n]` for each of `MEASURES`.

    Raises:
      UserError: not one instruction and one source for each picture, or a text that is none.
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
        # What is left where it was is the scan that was to go.
        followed = not any(_is_near(scan, meant) for scan in found)
        return followed, kept and len(found) == len(others) + (not followed)
    followed = any(_is_same(scan, wanted) for scan in found)
    return followed, kept and len(found) == len(before)


def _edited(scan: _Read, edit: Edit) -> _Read | None:
    """The scan after the edit; None where it is gone."""
    digit, colour, (row, column) = scan
    if edit.kind == REMOVE:
        return None
    if edit.kind == RECOLOUR:
        return digit, edit.to, (row, column)
    assert edit.kind == MOVE
    rows, columns = DIRECTIONS[edit.to]
    return digit, colour, (row + STEP * rows, column + STEP * columns)


def _fit(scan: _Read, edit: Edit) -> int:
    """How many of digit and colour the scan has as the words say."""
    return (edit.item.digit in (None, scan[0])) + (edit.item.colour in (None, scan[1]))


def _is_same(scan: _Read, wanted: _Read) -> bool:
    return scan[:2] == wanted[:2] and _is_near(scan, wanted)


def _is_near(scan: _Read, wanted: _Read) -> bool:
    return all(abs(a - b) <= _NEAR for a, b in zip(scan[2], wanted[2], strict=True))

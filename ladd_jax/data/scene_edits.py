"""Edits of scenes: a picture, an instruction, and the picture that the instruction makes of it.

Instructions are of three kinds:

    make the red seven blue
    move the blue three up, down, to the left, to the right
    remove the green four

An instruction names one scan of the source, by its digit, its colour or both, and no other scan
fits the words. Everything else stays the same to the pixel: other scans, their places, the
background. So there is one right answer, and how far a picture is from it can be measured.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.digits import WORDS, Digits
from ladd_jax.data.scenes import (
    COLOURS,
    DARKEST,
    GAP,
    ITEM,
    LIGHTEST,
    PITCH,
    SIDE,
    Item,
    check_bucket,
    item_of,
    paint,
    phrase,
)
from ladd_jax.errors import UserError

STEP = SIDE
"""Pixels by which a scan is moved: its own width."""

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "to the left": (0, -1), "to the right": (0, 1)}
"""Rows and columns by which each direction moves a scan, in steps."""

RECOLOUR, MOVE, REMOVE = "recolour", "move", "remove"
KINDS = (RECOLOUR, MOVE, REMOVE)
"""What an instruction may ask for; each is drawn equally often."""

# Numbers of scans in a source, and how often each is drawn.
_SCANS, _SHARES = (1, 2, 3), (0.2, 0.4, 0.4)


@dataclasses.dataclass(frozen=True)
class Edit:
    """What an instruction asks for.

    Attributes:
      kind: one of `KINDS`.
      item: the words for the scan that is meant.
      to: the new colour, or one of `DIRECTIONS`; empty if the scan is removed.
    """

    kind: str
    item: Item
    to: str = ""


@dataclasses.dataclass(frozen=True)
class Placed:
    """A scan of a picture.

    Attributes:
      digit: 0 to 9.
      colour: a name of `COLOURS`.
      scan: number of the scan among all scans of the digits.
      place: row and column of its upper left corner.
    """

    digit: int
    colour: str
    scan: int
    place: tuple[int, int]

    def fits(self, item: Item) -> bool:
        """Whether the words for an item may mean this scan."""
        return item.digit in (None, self.digit) and item.colour in (None, self.colour)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A scene: the grey of its background in [0, 1], and its scans."""

    shade: float
    scans: tuple[Placed, ...]


def instruction(edit: Edit) -> str:
    """The words for an edit; `parse` reads them."""
    named = phrase(edit.item)
    if edit.kind == RECOLOUR:
        return f"make the {named} {edit.to}"
    return f"move the {named} {edit.to}" if edit.kind == MOVE else f"remove the {named}"


_INSTRUCTION = re.compile(
    f"(?:make the {ITEM} ({'|'.join(COLOURS)})|move the {ITEM} ({'|'.join(DIRECTIONS)})"
    f"|remove the {ITEM})"
)


def parse(text: str) -> Edit:
    """What an instruction asks for, the inverse of `instruction`.

    Raises:
      UserError: the text is not an instruction for a scene.
    """
    match = _INSTRUCTION.fullmatch(text)
    if not match:
        raise UserError(
            f"{text[:60]!r} is not an instruction for a scene: write one such as 'make the red "
            f"seven blue', 'move the three to the left' or 'remove the green digit'"
        )
    groups = match.groups()
    if groups[1]:
        return Edit(RECOLOUR, item_of(*groups[:2]), groups[2])
    if groups[4]:
        return Edit(MOVE, item_of(*groups[3:5]), groups[5])
    return Edit(REMOVE, item_of(*groups[6:]))


def edited(picture: Picture, edit: Edit) -> Picture:
    """The picture that an edit makes: the first scan that fits its words is changed or removed."""
    meant = next(scan for scan in picture.scans if scan.fits(edit.item))
    scans = []
    for scan in picture.scans:
        if scan is not meant:
            scans.append(scan)
        elif edit.kind == RECOLOUR:
            scans.append(dataclasses.replace(scan, colour=edit.to))
        elif edit.kind == MOVE:
            scans.append(dataclasses.replace(scan, place=_moved(scan.place, edit.to)))
    return dataclasses.replace(picture, scans=tuple(scans))


def _moved(place: tuple[int, int], direction: str) -> tuple[int, int]:
    rows, columns = DIRECTIONS[direction]
    return place[0] + STEP * rows, place[1] + STEP * columns


def compose(
    digits: Digits, bucket: Bucket, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Edits of a bucket, the same for the same seed.

    Returns:
      The edited pictures and their sources, float32 `[count, H, W, 3]` each in [-1, 1], and the
      instructions.

    Raises:
      UserError: the bucket is not 24x24, 16x32 or 32x16.
    """
    drawn = draw_edits(digits, bucket, count, seed)
    after = render(digits, bucket, [edited(picture, edit) for picture, edit in drawn])
    before = render(digits, bucket, [picture for picture, _ in drawn])
    return after, before, [instruction(edit) for _, edit in drawn]


def draw_edits(digits: Digits, bucket: Bucket, count: int, seed: int) -> list[tuple[Picture, Edit]]:
    """Random sources, each with an edit that is possible for it.

    Raises:
      UserError: the bucket is not 24x24, 16x32 or 32x16.
    """
    check_bucket(bucket)
    rng = np.random.default_rng((seed, bucket.height, bucket.width, 2))
    by_label = [np.flatnonzero(digits.labels == digit) for digit in range(len(WORDS))]
    drawn = []
    for kind in rng.choice(len(KINDS), count):
        found = None
        # A scene may have no room for a move, or the drawn scan cannot be told from the others.
        while found is None:
            picture = _draw_picture(rng, bucket, by_label)
            found = _draw_edit(rng, bucket, picture, KINDS[kind])
        drawn.append((picture, found))
    return drawn


def render(digits: Digits, bucket: Bucket, pictures: Sequence[Picture]) -> np.ndarray:
    """Pictures as pixels, float32 `[n, H, W, 3]` in [-1, 1]."""
    shades = np.array([picture.shade for picture in pictures])
    images = np.tile(shades[:, None, None, None], (1, bucket.height, bucket.width, 3))
    for image, picture in zip(images, pictures, strict=True):
        for scan in picture.scans:
            colour = np.array(COLOURS[scan.colour])
            paint(image, digits.images[scan.scan], scan.place, colour, picture.shade)
    return (2 * images - 1).astype(np.float32)


def _draw_picture(
    rng: np.random.Generator, bucket: Bucket, by_label: Sequence[np.ndarray]
) -> Picture:
    wanted = rng.choice(_SCANS, p=_SHARES)
    scans: list[Placed] = []
    while len(scans) < wanted:
        digit = int(rng.integers(len(WORDS)))
        row, column = (PITCH * int(rng.integers(side)) for side in _places(bucket))
        place = row, column
        if _is_free(place, scans):
            colour = list(COLOURS)[rng.integers(len(COLOURS))]
            scans.append(Placed(digit, colour, int(rng.choice(by_label[digit])), place))
        elif rng.random() < 0.05:
            # The scans drawn so far may leave no room for another.
            scans = []
    return Picture(float(rng.uniform(DARKEST, LIGHTEST)), tuple(scans))


def _draw_edit(
    rng: np.random.Generator, bucket: Bucket, picture: Picture, kind: str
) -> Edit | None:
    """An edit of a kind that is possible for the picture, or None."""
    meant = picture.scans[rng.integers(len(picture.scans))]
    others = [scan for scan in picture.scans if scan is not meant]
    names = (Item(meant.digit, meant.colour), Item(None, meant.colour), Item(meant.digit, None))
    clear = [name for name in names if not any(scan.fits(name) for scan in others)]
    if not clear:
        return None
    item = clear[rng.integers(len(clear))]
    if kind == REMOVE:
        return Edit(kind, item)
    if kind == RECOLOUR:
        colours = [name for name in COLOURS if name != meant.colour]
        return Edit(kind, item, colours[rng.integers(len(colours))])
    most = [PITCH * (side - 1) for side in _places(bucket)]
    free = [
        direction
        for direction in DIRECTIONS
        if all(0 <= at <= end for at, end in zip(_moved(meant.place, direction), most, strict=True))
        and _is_free(_moved(meant.place, direction), others)
    ]
    return Edit(kind, item, free[rng.integers(len(free))]) if free else None


def _places(bucket: Bucket) -> tuple[int, int]:
    """Number of rows and of columns in which a scan can be placed."""
    return (bucket.height - SIDE) // PITCH + 1, (bucket.width - SIDE) // PITCH + 1


def _is_free(place: Sequence[int], scans: Sequence[Placed]) -> bool:
    """Whether a scan at a place has a gap to all others."""
    return all(
        max(abs(a - b) for a, b in zip(place, scan.place, strict=True)) >= SIDE + GAP
        for scan in scans
    )

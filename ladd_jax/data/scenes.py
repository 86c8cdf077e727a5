"""Scenes: one to three scans of handwritten digits, in colours, at random places of a canvas.

A prompt has many pictures, which differ in the scans of its digits, in their places, in the shade
of the background, and in whatever the prompt leaves open. Prompts are of five kinds:

    a seven
    a red digit
    a red seven
    a red seven left of a blue three, a red seven above a blue three
    a red seven, a blue three and a green one

A prompt names every scan of its picture. The order of three scans says nothing about their places.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.digits import WORDS, Digits
from ladd_jax.errors import UserError

SQUARE, WIDE, TALL = Bucket(24, 24), Bucket(16, 32), Bucket(32, 16)
BUCKETS = (SQUARE, WIDE, TALL)
SIDE = 8
"""Rows and columns of a scan."""

PITCH = 4
"""Pixels between places. In a network with patches of this size, scans cover whole patches."""

GAP = 1
"""Smallest number of pixels between the squares of two scans."""

COLOURS = {
    "red": (1.0, 0.1, 0.1),
    "yellow": (1.0, 0.9, 0.1),
    "green": (0.1, 1.0, 0.2),
    "cyan": (0.1, 0.95, 1.0),
    "blue": (0.3, 0.4, 1.0),
    "pink": (1.0, 0.35, 0.9),
}
"""Red, green and blue of full ink, in [0, 1]. The largest is 1, so it alone shows the ink."""

DARKEST, LIGHTEST = 0.0, 0.25
"""Range of the background's grey, in [0, 1]."""

RELATIONS = {"left of": 1, "above": 0}
"""Relations of the first scan to the second, each with the axis of the place that it is about."""

# Scans are at least this much further apart along a relation's axis than across, to make it clear.
_CLEARLY = 2

# How often each kind is drawn.
_ONE, _DIGIT, _COLOUR, _TWO, _THREE = range(5)
_SHARES = (0.3, 0.1, 0.1, 0.3, 0.2)


@dataclasses.dataclass(frozen=True)
class Item:
    """What a prompt says about one scan.

    Attributes:
      digit: 0 to 9, or None for any.
      colour: a name of `COLOURS`, or None for any.
    """

    digit: int | None
    colour: str | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a prompt asks for.

    Attributes:
      items: one for each scan of the picture, in the prompt's order.
      relation: one of `RELATIONS`, of the first of two scans to the second; None for one or three.
    """

    items: tuple[Item, ...]
    relation: str | None = None


def prompt(wanted: Wanted) -> str:
    """The prompt that asks for something; `parse` reads it."""
    first, *others = (_with_article(item) for item in wanted.items)
    if wanted.relation:
        return f"{first} {wanted.relation} {others[0]}"
    return ", ".join([first, *others[:-1]]) + "".join(f" and {last}" for last in others[-1:])


def phrase(item: Item) -> str:
    """The words for a scan, without an article: `red seven`, `red digit`, `seven`."""
    noun = "digit" if item.digit is None else WORDS[item.digit]
    return f"{item.colour} {noun}" if item.colour else noun


def _with_article(item: Item) -> str:
    words = phrase(item)
    return f"{'an' if words == 'eight' else 'a'} {words}"


ITEM = f"(?:({'|'.join(COLOURS)}) )?({'|'.join(WORDS)}|digit)"
"""Regular expression of a phrase. Its groups are the colour, if there is one, and the noun."""

_ITEM = f"an? {ITEM}"
_PROMPT = re.compile(f"{_ITEM}(?: ({'|'.join(RELATIONS)}) {_ITEM}|, {_ITEM} and {_ITEM})?")


def parse(text: str) -> Wanted:
    """What a prompt asks for, the inverse of `prompt`.

    Raises:
      UserError: the text is not a prompt of a scene.
    """
    match = _PROMPT.fullmatch(text)
    if not match:
        raise UserError(
            f"{text[:60]!r} is not a prompt of a scene: write one such as 'a red seven', 'a red "
            f"seven left of a blue three' or 'a red seven, a blue three and a green one'"
        )
    colour, noun, relation, *others = match.groups()
    pairs = [(colour, noun), *zip(others[::2], others[1::2], strict=True)]
    items = [item_of(colour, noun) for colour, noun in pairs if noun]
    return Wanted(tuple(items), relation)


def item_of(colour: str | None, noun: str) -> Item:
    """The scan that the groups of `ITEM` name."""
    return Item(None if noun == "digit" else WORDS.index(noun), colour)


def compose(digits: Digits, bucket: Bucket, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures of a bucket and their prompts, the same for the same seed.

    Returns:
      float32 `[count, H, W, 3]` in [-1, 1], and prompts.

    Raises:
      UserError: the bucket is not 24x24, 16x32 or 32x16.
    """
    wanted = draw_wanted(bucket, count, seed)
    return draw(digits, bucket, wanted, seed), [prompt(each) for each in wanted]


def draw_wanted(bucket: Bucket, count: int, seed: int) -> list[Wanted]:
    """What `count` random prompts of a bucket ask for; digits and colours are drawn evenly.

    16x32 has no `above` and 32x16 no `left of`: two scans with a gap do not fit into 16 pixels.

    Raises:
      UserError: the bucket is not 24x24, 16x32 or 32x16.
    """
    check_bucket(bucket)
    rng = np.random.default_rng((seed, bucket.height, bucket.width))
    relations = [name for name, axis in RELATIONS.items() if _fits(bucket, axis)]
    names = list(COLOURS)
    result = []
    for kind in rng.choice(len(_SHARES), count, p=_SHARES):
        scans = {_TWO: 2, _THREE: 3}.get(kind, 1)
        items = tuple(
            Item(
                None if kind == _COLOUR else int(rng.integers(len(WORDS))),
                None if kind == _DIGIT else names[rng.integers(len(names))],
            )
            for _ in range(scans)
        )
        relation = relations[rng.integers(len(relations))] if kind == _TWO else None
        result.append(Wanted(items, relation))
    return result


def draw(digits: Digits, bucket: Bucket, wanted: Sequence[Wanted], seed: int) -> np.ndarray:
    """A random picture for each of `wanted`, float32 `[n, H, W, 3]` in [-1, 1].

    Raises:
      UserError: the bucket is not 24x24, 16x32 or 32x16, or has no room for a relation.
    """
    check_bucket(bucket)
    rng = np.random.default_rng((seed, bucket.height, bucket.width, 1))
    by_label = [np.flatnonzero(digits.labels == digit) for digit in range(len(WORDS))]
    palette = {name: np.array(colour) for name, colour in COLOURS.items()}
    names = list(palette)
    shades = rng.uniform(DARKEST, LIGHTEST, len(wanted))
    images = np.tile(shades[:, None, None, None], (1, bucket.height, bucket.width, 3))
    for image, shade, each in zip(images, shades, wanted, strict=True):
        for (row, column), item in zip(_places(rng, bucket, each), each.items, strict=True):
            digit = rng.integers(len(WORDS)) if item.digit is None else item.digit
            colour = palette[item.colour or names[rng.integers(len(names))]]
            paint(image, digits.images[rng.choice(by_label[digit])], (row, column), colour, shade)
    return (2 * images - 1).astype(np.float32)


def paint(
    image: np.ndarray, scan: np.ndarray, place: Sequence[int], colour: np.ndarray, shade: float
) -> None:
    """Adds a scan to an image in place.

    Args:
      image: float64 `[H, W, 3]` in [0, 1], which has the background's shade where the scan goes.
      scan: `[8, 8, 1]` in [-1, 1].
      place: row and column of the scan's upper left corner.
      colour: float64 `[3]` of full ink.
      shade: grey of the background.
    """
    row, column = place
    ink = (scan.astype(np.float64) + 1) / 2  # [8, 8, 1]
    image[row : row + SIDE, column : column + SIDE] += ink * (colour - shade)


def _places(rng: np.random.Generator, bucket: Bucket, wanted: Wanted) -> np.ndarray:
    """Upper left corners int `[k, 2]`, multiples of `PITCH`, of scans with gaps between them, drawn
    evenly from all such places.

    Places are drawn until some fit. In the worst case, three scans in 16x32, two in a hundred do.
    """
    count = len(wanted.items)
    if wanted.relation and not _fits(bucket, RELATIONS[wanted.relation]):
        raise UserError(
            f"{bucket.name} has no room for a scan {wanted.relation} another: that takes "
            f"{2 * SIDE + GAP} pixels, so use another bucket"
        )
    most = (np.array((bucket.height, bucket.width)) - SIDE) // PITCH
    while True:
        drawn = (1 if count == 1 else 32 * count, count, 2)
        places = PITCH * rng.integers(0, most, drawn, endpoint=True)
        right = np.ones(len(places), bool)
        for a, b in itertools.combinations(range(count), 2):
            apart = np.abs(places[:, a] - places[:, b]) >= SIDE + GAP
            right &= apart.any(axis=1)
        if wanted.relation:
            axis = RELATIONS[wanted.relation]
            offset = places[:, 1] - places[:, 0]
            along, across = offset[:, axis], np.abs(offset[:, 1 - axis])
            right &= (along >= SIDE + GAP) & (along >= across + _CLEARLY)
        if right.any():
            return places[np.argmax(right)]


def _fits(bucket: Bucket, axis: int) -> bool:
    return (bucket.height, bucket.width)[axis] >= 2 * SIDE + GAP


def check_bucket(bucket: Bucket) -> None:
    """Raises UserError where a bucket is not one of `BUCKETS`."""
    if bucket not in BUCKETS:
        raise UserError(f"scenes come in buckets 24x24, 16x32 and 32x16, not {bucket.name}")

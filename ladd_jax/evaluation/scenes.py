"""Reads scenes: which of count, digits, colours and relation agree with the prompt.

This is alignment in the manner of GenEval (Ghosh et al. 2023), but without a detector: scans are
found by rules, a colour is the nearest hue, and a classifier of single scans reads the digits.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from ladd_jax.data.digits import Digits
from ladd_jax.data.scenes import RELATIONS, SIDE, Item, Wanted, parse
from ladd_jax.errors import UserError
from ladd_jax.evaluation.judge import Judge, train_judge
from ladd_jax.evaluation.scans import Scan, Scene, find

MEASURES = ("count", "digits", "colours", "relation", "all")
"""What `Reader.agreement` tells of a picture."""

# A relation holds if the centres of two scans are at least this many pixels apart along its axis,
# and at most that far apart across it.
_APART = SIDE // 2

# Number of scans in the features, and of dimensions of a scan's shape.
_SCANS, _SHAPE = 3, 12

# Weights that give colour, place and the background about as much variance over the data as the
# shape of a scan has, which is 1.
_COLOUR, _PLACE, _GROUND = 1.5, 2.5, 4.0

_SCAN = 1 + _SHAPE + 3 + 2

FEATURES = _SCANS * _SCAN + 11
"""Width of the features, for every bucket."""


class Reader:
    """Reads digits, colours and places of scenes; `train_reader` makes one.

    Attributes:
      judge: the classifier of single scans.
    """

    def __init__(self, judge: Judge, scans: np.ndarray):
        """Takes a judge, and the scans float32 `[n, 8, 8, 1]` whose shapes span the features."""
        self.judge = judge
        features = judge.features(scans)
        self._center = features.mean(axis=0)
        _, scales, axes = np.linalg.svd(features - self._center, full_matrices=False)
        spread = np.sqrt(np.sum(scales[:_SHAPE] ** 2) / len(scans))
        self._shape = axes[:_SHAPE].T / spread

    def agreement(self, images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Which pictures agree with their prompts.

        - `count`: as many scans as the prompt names.
        - `digits`, `colours`: each one named is there, as often as it is named.
        - `relation`: the scans that best fit the prompt's items are placed as it says; True if it
          names no relation.
        - `all`: the right count, and each item has a scan of its own with its digit and colour,
          placed as the prompt says.

        Args:
          images: float32 `[n, H, W, 3]` in [-1, 1].
          prompts: the prompt of each picture, which must be of a scene.

        Returns:
          bool `[n]` for each of `MEASURES`.

        Raises:
          UserError: there is not one prompt for each picture, or one is not of a scene.
        """
        if len(images) != len(prompts):
            raise UserError(
                f"{len(images)} pictures and {len(prompts)} prompts: give one for each picture"
            )
        wanted = [parse(prompt) for prompt in prompts]
        read = [found for found, _ in self.read(images)]
        rows = [_compare(found, each) for found, each in zip(read, wanted, strict=True)]
        values = np.array(rows, bool).reshape(-1, len(MEASURES))
        return dict(zip(MEASURES, values.T, strict=True))

    def read(self, images: np.ndarray) -> list[tuple[list[tuple[int, Scan]], np.ndarray]]:
        """Reads each of the pictures `[n, H, W, 3]`.

        Returns:
          for each picture its scans, each with the digit that it is taken for, and the colour of
          its background, `[3]` in [0, 1].
        """
        scenes = find(images)
        digits = iter(self.judge.labels(_inks(scenes)))
        return [([(next(digits), s) for s in scene.scans], scene.ground) for scene in scenes]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features for distances between sets of pictures, of the same width for every bucket.

        For each of the first three scans from the upper left, zeros where there are fewer:

        - 1: it is there
        - 12: its shape, as principal components of the judge's features, with a total variance of 1
          over the data
        - 3: its colour at full ink
        - 2: its place, as a share of the canvas

        and of the picture: its background's colour (3), mean (3) and standard deviation (3) of the
        channels, the number of scans (1), and how far values exceed [-1, 1] on average (1).

        All are bounded, so that one strange picture cannot dominate a distance.

        Args:
          images: float32 `[n, H, W, 3]` in [-1, 1].

        Returns:
          float64 `[n, FEATURES]`.
        """
        scenes = find(images)
        size = np.array(images.shape[1:3], np.float64)
        shapes = iter((self.judge.features(_inks(scenes)) - self._center) @ self._shape)
        scans = np.zeros((len(images), _SCANS, _SCAN))
        for row, scene in zip(scans, scenes, strict=True):
            for n, scan in enumerate(scene.scans):
                shape = next(shapes)
                if n < _SCANS:
                    colour = _COLOUR * (scan.colour - 0.5)
                    place = _PLACE * ((np.array(scan.place) + 0.5) / size - 0.5)
                    row[n] = np.concatenate([[1.0], shape, colour, place])
        values = np.nan_to_num(images.astype(np.float64), nan=-1.0)
        inside = np.clip(values, -1, 1)
        outside = np.clip(np.abs(values - inside), 0, 1).mean(axis=(1, 2, 3))
        picture = [
            _GROUND * np.array([scene.ground for scene in scenes]).reshape(-1, 3),
            inside.mean(axis=(1, 2)),
            inside.std(axis=(1, 2)),
            np.array([[len(scene.scans) / _SCANS] for scene in scenes]).reshape(-1, 1),
            outside[:, None],
        ]
        return np.concatenate([scans.reshape(len(images), -1), *picture], axis=1)


def train_reader(scans: Digits, seed: int = 0, epochs: int = 40) -> Reader:
    """A reader whose classifier was trained on the given scans as `find` yields them.

    Returns:
      the reader, the same for the same arguments on the same machine.

    Raises:
      UserError: there are fewer scans than in a batch of the classifier.
    """
    margin = ((0, 0), (SIDE, SIDE), (SIDE, SIDE), (0, 0))
    pictures = np.pad(scans.images, margin, constant_values=-1.0)
    scenes = find(np.repeat(pictures, 3, axis=-1))
    whole = [n for n, scene in enumerate(scenes) if len(scene.scans) == 1]
    inks = _inks([scenes[n] for n in whole])
    return Reader(train_judge(inks, scans.labels[whole], seed, epochs), inks)


def _inks(scenes: Sequence[Scene]) -> np.ndarray:
    """All scans in one array, float32 `[m, 8, 8, 1]`."""
    inks = [scan.ink for scene in scenes for scan in scene.scans]
    return np.array(inks, np.float32).reshape(-1, SIDE, SIDE, 1)


def _compare(found: list[tuple[int, Scan]], wanted: Wanted) -> tuple[bool, ...]:
    """`MEASURES` of one picture, from the digits and scans found in it."""
    items = wanted.items
    count = len(found) == len(items)
    digits = _among([item.digit for item in items], [digit for digit, _ in found])
    colours = _among([item.colour for item in items], [scan.colour_name for _, scan in found])
    best, related = -1, False
    for chosen in itertools.permutations(found, len(items)):
        fit = sum(_fit(item, *scan) for item, scan in zip(items, chosen, strict=True))
        if fit >= best:
            holds = _holds(wanted.relation, [scan.place for _, scan in chosen])
            related = holds or (fit == best and related)
            best = fit
    relation = related or wanted.relation is None
    return count, digits, colours, relation, count and relation and best == 2 * len(items)


def _among(named: Sequence[Hashable], found: Sequence[Hashable]) -> bool:
    return not Counter(each for each in named if each is not None) - Counter(found)


def _fit(item: Item, digit: int, scan: Scan) -> int:
    """How many of digit and colour match the item."""
    return (item.digit in (None, digit)) + (item.colour in (None, scan.colour_name))


def _holds(relation: str | None, places: Sequence[tuple[float, float]]) -> bool:
    if relation is None:
        return True
    axis = RELATIONS[relation]
    offset = np.subtract(places[1], places[0])
    return bool(offset[axis] >= max(_APART, abs(offset[1 - axis])))

"""Finds the scans in a scene: ink that stands out from the background, in parts of a digit's size.

In a picture of the data each scan is one connected part. In a network's sample scans may be soft,
broken or grown together, so parts that fit into one scan are joined, and larger ones are cut.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from ladd_jax.data.scenes import COLOURS, SIDE

MOST = 6
"""Most scans that are read in one picture; those with the most ink are kept."""

# Least ink of a pixel in a part, of a part worth joining, and of a whole scan. The lightest real
# scan has 13.
_PIXEL, _CRUMB, _LEAST = 0.25, 1.0, 6.0

# Most rows or columns of a part that is not cut; a soft scan is larger than a sharp one.
_LARGEST = SIDE + 2

# Neighbours of a pixel, including diagonal ones, but only in its own picture.
_NEIGHBOURS = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])

# A colour with less chroma than this is grey; the colours of the data have 0.5 or more.
_GREY = 0.2


def _chroma(colours: np.ndarray) -> np.ndarray:
    return colours - colours.mean(axis=-1, keepdims=True)


_CHROMA = _chroma(np.array(list(COLOURS.values())))
_CHROMA /= np.linalg.norm(_CHROMA, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan that was found.

    Attributes:
      place: row and column of its centre, in pixels.
      ink: float32 `[8, 8, 1]` in [-1, 1], the window around that centre, as a judge reads it.
      colour: float64 `[3]`, red, green and blue of full ink in [0, 1].
    """

    place: tuple[float, float]
    ink: np.ndarray
    colour: np.ndarray

    @property
    def colour_name(self) -> str | None:
        """The name in `COLOURS` of the nearest hue, or None for a grey."""
        chroma = _chroma(self.colour)
        if np.linalg.norm(chroma) < _GREY:
            return None
        return list(COLOURS)[int(np.argmax(_CHROMA @ chroma))]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What was found in a picture.

    Attributes:
      scans: at most `MOST`, from the upper left to the lower right (by row plus column, so that
        the first is the one that is left of or above the other).
      ground: float64 `[3]`, the colour of the background in [0, 1].
    """

    scans: tuple[Scan, ...]
    ground: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Part:
    """Pixels `[m, 2]` of a picture, with the ink and the nearest hue of each, `[m]`."""

    pixels: np.ndarray
    ink: np.ndarray
    hues: np.ndarray

    def __getitem__(self, which: np.ndarray) -> "_Part":
        return _Part(self.pixels[which], self.ink[which], self.hues[which])

    @property
    def mass(self) -> float:
        return float(self.ink.sum())

    @property
    def hue(self) -> int:
        return int(np.argmax(np.bincount(self.hues, self.ink)))

    @property
    def size(self) -> np.ndarray:
        return np.ptp(self.pixels, axis=0) + 1


def find(images: np.ndarray) -> list[Scene]:
    """The scans of each picture.

    Args:
      images: float `[n, H, W, 3]`; values outside [-1, 1] are clipped, and NaNs count as black.
    """
    colours = (np.clip(np.nan_to_num(images, nan=-1.0), -1, 1).astype(np.float64) + 1) / 2
    # All colours have a largest channel of 1, so the largest channel alone tells how much ink.
    values = colours.max(axis=-1)
    # The median is the background, since scans leave more than half of a picture free.
    levels = np.median(values, axis=(1, 2))
    room = np.maximum(1 - levels, 0.5)[:, None, None]
    ink = np.clip((values - levels[:, None, None]) / room, 0, 1)
    hues = np.argmax(_chroma(colours) @ _CHROMA.T, axis=-1)
    labels, _ = ndimage.label(ink > _PIXEL, _NEIGHBOURS)
    parts: list[list[_Part]] = [[] for _ in images]
    for label, (picture, rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        n, corner = picture.start, (rows.start, columns.start)
        local = np.argwhere(labels[n, rows, columns] == label)
        i, j = (local + corner).T
        part = _Part(local + corner, ink[n, i, j], hues[n, i, j])
        parts[n] += _cut(part) if part.mass >= _CRUMB else []
    grounds = np.median(colours, axis=(1, 2))
    return [
        Scene(_scans(found, ink[n], colours[n], grounds[n]), grounds[n])
        for n, found in enumerate(parts)
    ]


def _cut(part: _Part) -> list[_Part]:
    """Cuts a part to a scan's size: by hue if there are several, else where there is least ink."""
    if part.size.max() <= _LARGEST:
        return [part]
    masses = np.bincount(part.hues, part.ink)
    if np.count_nonzero(masses >= _LEAST) > 1:
        found = [part[part.hues == hue] for hue in np.flatnonzero(masses >= _CRUMB)]
    else:
        axis = int(np.argmax(part.size))
        along = part.pixels[:, axis] - part.pixels[:, axis].min()
        lines = np.bincount(along, part.ink)
        inner = np.arange(SIDE // 2, len(lines) - SIDE // 2 + 1)
        at = inner[np.argmin(lines[inner] + 1e-3 * np.abs(inner - len(lines) / 2))]
        found = [part[along < at], part[along >= at]]
    return [piece for each in found for piece in _cut(each)]


def _join(parts: list[_Part]) -> list[_Part]:
    """Joins parts of one hue that together fit into one scan."""
    whole: list[_Part] = []
    for part in sorted(parts, key=lambda part: -part.mass):
        for n, other in enumerate(whole):
            both = _Part(
                np.concatenate([other.pixels, part.pixels]),
                np.concatenate([other.ink, part.ink]),
                np.concatenate([other.hues, part.hues]),
            )
            if other.hue == part.hue and both.size.max() <= SIDE:
                whole[n] = both
                break
        else:
            whole.append(part)
    return whole


def _scans(
    parts: list[_Part], ink: np.ndarray, colours: np.ndarray, ground: np.ndarray
) -> tuple[Scan, ...]:
    whole = [part for part in _join(parts) if part.mass >= _LEAST]
    whole = sorted(whole, key=lambda part: -part.mass)[:MOST]
    scans = []
    for part in whole:
        others = ink.copy()
        for other in parts:
            others[tuple(other.pixels.T)] = 0
        i, j = part.pixels.T
        others[i, j] = part.ink
        low, high = part.pixels.min(axis=0), part.pixels.max(axis=0)
        row, column = (low + high - SIDE + 1) // 2 + SIDE
        window = np.pad(others, SIDE)[row : row + SIDE, column : column + SIDE]
        # The least-squares fit of `ground + ink * (colour - ground)`.
        mixed = part.ink @ (colours[i, j] - ground) / np.sum(part.ink**2)
        center = (low + high) / 2
        scans.append(
            Scan(
                (float(center[0]), float(center[1])),
                (2 * window - 1).astype(np.float32)[..., None],
                np.clip(ground + mixed, 0, 1),
            )
        )
    return tuple(sorted(scans, key=lambda scan: sum(scan.place)))

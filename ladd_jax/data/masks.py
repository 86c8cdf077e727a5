"""Masks of pictures to be filled: free-form strokes, boxes, and frames around what is known.

Masks are drawn in pixels, with holes as large as those that Suvorov et al. 2022 train with for
inpainting of any kind, and reduced to the grid of latents, where most of a network sees them.

H W rows and columns in pixels.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ladd_jax.data.images import enlarged

KINDS = ("strokes", "boxes", "outpainting")
"""Kinds of masks, in the order of `data.mask_shares`."""

LEAST, MOST = 0.05, 0.85
"""Limits of the share of the latents that is to be filled."""

# Most draws until a mask is within these limits, which only masks of very few latents often miss.
_TRIES = 64


def draw_mask(
    seed: int, key: str, height: int, width: int, reduction: int, shares: Sequence[float]
) -> np.ndarray:
    """The mask of a record, the same for the same arguments.

    Args:
      seed: the run's seed.
      key: a text that tells the record from others.
      height: H.
      width: W.
      reduction: pixels on a side of a latent pixel, which divides H and W; each side has two
        latent pixels or more.
      shares: how often each of `KINDS` is drawn, in any unit.

    Returns:
      bool `[H, W]`, true where the picture is to be filled. It is neither empty nor full, and
      neither is it on the grid of latents.
    """
    words = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest(), np.uint32)
    rng = np.random.default_rng([seed, *map(int, words)])
    weights = np.asarray(shares, np.float64)
    draw = _DRAW[rng.choice(len(KINDS), p=weights / weights.sum())]
    for _ in range(_TRIES):
        mask = draw(rng, height, width)
        if mask.any() and LEAST <= reduced(mask, reduction).mean() <= MOST:
            return mask
    return _middle(height, width, reduction)


def reduced(mask: np.ndarray, reduction: int) -> np.ndarray:
    """A mask on the grid of latents, where a latent is filled if any of its pixels is.

    Args:
      mask: bool `[H, W]`.
      reduction: r, which divides H and W.

    Returns:
      bool `[H / r, W / r]`.
    """
    height, width = mask.shape
    blocks = mask.reshape(height // reduction, reduction, width // reduction, reduction)
    return np.asarray(blocks.any(axis=(1, 3)))


def _strokes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One to four strokes of a round brush, each of a few turns."""
    side = min(height, width)
    image = Image.new("1", (width, height))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        brush = side * rng.uniform(0.08, 0.25)
        point, angle = rng.uniform((0, 0), (width, height)), rng.uniform(0, 2 * np.pi)
        points = [point]
        for _ in range(rng.integers(1, 6)):
            angle += rng.uniform(-np.pi / 2, np.pi / 2)
            step = side * rng.uniform(0.1, 0.4) * np.array((np.cos(angle), np.sin(angle)))
            point = np.clip(point + step, 0, (width, height))
            points.append(point)
        pen.line([tuple(map(float, p)) for p in points], fill=1, width=max(1, round(brush)))
        for x, y in points:
            pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
    return np.array(image)


def _boxes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One to three boxes, whose sides are a fifth to three fifths of the picture's."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        rows, columns = _part(rng, height, 0.2, 0.6), _part(rng, width, 0.2, 0.6)
        mask[rows, columns] = True
    return mask


def _outpainting(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Everything but one box, which in half of the masks is as high or as wide as the picture."""
    mask = np.ones((height, width), bool)
    rows, columns = _part(rng, height, 0.4, 0.8), _part(rng, width, 0.4, 0.8)
    whole = rng.integers(4)
    mask[slice(None) if whole == 0 else rows, slice(None) if whole == 1 else columns] = False
    return mask


def _part(rng: np.random.Generator, side: int, least: float, most: float) -> slice:
    """A random part of a side, whose share of the side's length is between `least` and `most`."""
    length = max(1, round(side * rng.uniform(least, most)))
    start = int(rng.integers(0, side - length, endpoint=True))
    return slice(start, start + length)


def _middle(height: int, width: int, reduction: int) -> np.ndarray:
    """A box of whole latents in the middle, with sides half as long as the picture's."""
    rows, columns = height // reduction, width // reduction
    mask = np.zeros((rows, columns), bool)
    mask[_half(rows), _half(columns)] = True
    return enlarged(mask, reduction)


def _half(side: int) -> slice:
    length = max(1, side // 2)
    start = (side - length) // 2
    return slice(start, start + length)


_DRAW: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _strokes, _boxes, _outpainting,
)  # fmt: skip
"""Functions that draw each of `KINDS`."""

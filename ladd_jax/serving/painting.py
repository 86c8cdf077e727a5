"""Holes that are painted over a picture on the page.

H W rows and columns of the picture, in pixels.
"""

import numpy as np
from PIL import Image

from ladd_jax.data.images import decode_opacity, enlarged
from ladd_jax.errors import UserError

_CANVAS = 640
"""Longer side of the canvas in pixels: fine enough for a brush, and small enough to be sent after
each stroke."""

_MOST_PIXELS = 1024 * 1024
"""Most pixels of a painting, more than any canvas has; larger images are not decoded."""


def canvas_of(picture: np.ndarray) -> np.ndarray:
    """A picture at the size of the canvas that is painted on.

    Args:
      picture: uint8 `[H, W, 3]`.

    Returns:
      the picture, uint8, scaled down to the canvas, or enlarged by a whole factor if it is small.
    """
    longer = max(picture.shape[:2])
    if longer <= _CANVAS:
        return enlarged(picture, _CANVAS // longer)
    image = Image.fromarray(picture)
    image.thumbnail((_CANVAS, _CANVAS), Image.Resampling.LANCZOS)
    return np.asarray(image)


def painted_mask(painting: bytes, height: int, width: int) -> np.ndarray:
    """The mask that a painting over a picture stands for.

    Args:
      painting: an encoded image of the picture's aspect and of at most 1024 * 1024 pixels,
        transparent where nothing is painted.
      height: H.
      width: W.

    Returns:
      uint8 `[H, W, 3]`, white at each pixel with any paint, which is to be filled, and black
      elsewhere.

    Raises:
      UserError: the painting is not an image, is damaged or too large, or has another aspect than
        the picture.
    """
    paint = (decode_opacity(painting, _MOST_PIXELS) > 0).astype(np.float32)
    rows, columns = paint.shape
    # Allows for the rounding of a canvas to whole pixels. Another shape can occur because the
    # editor's undo also undoes the choice of a picture, and then falls back to its own canvas.
    if abs(rows - height * columns / width) >= 1 and abs(columns - width * rows / height) >= 1:
        raise UserError("the canvas has another shape than the picture: choose the picture again")
    # BOX averages over each pixel, so the mean is 0 only where no part of the pixel is painted.
    share = Image.fromarray(paint).resize((width, height), Image.Resampling.BOX)
    return np.repeat(np.uint8(255) * (np.asarray(share) > 0)[..., None], 3, axis=-1)

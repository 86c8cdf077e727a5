"""Holes that are painted over a picture on the page.

H W rows and columns of the picture, in pixels.
"""

import numpy as np
from PIL import Image

from ladd_jax.data.images import decode_opacity, enlarged
from ladd_jax.errors import UserError

_CANVAS = 640
"""Pixels of the longer side of what is painted on: fine enough for a brush, and few enough to be
sent after each stroke."""

_MOST_PIXELS = 1024 * 1024
"""Of a painting, more than any canvas has: whatever else a client sends is not decoded."""


def canvas_of(picture: np.ndarray) -> np.ndarray:
    """A picture as it is painted on.

    Args:
      picture: uint8 `[H, W, 3]`.

    Returns:
      the same, uint8, scaled down to the canvas, or of small pictures enlarged as far as whole
      numbers go.
    """
    longer = max(picture.shape[:2])
    if longer <= _CANVAS:
        return enlarged(picture, _CANVAS // longer)
    image = Image.fromarray(picture)
    image.thumbnail((_CANVAS, _CANVAS), Image.Resampling.LANCZOS)
    return np.asarray(image)


def painted_mask(painting: bytes, height: int, width: int) -> np.ndarray:
    """The mask that a painting over a picture says.

    Args:
      painting: an encoded image of the picture's aspect and of at most 1024 * 1024 pixels,
        transparent where nothing is painted.
      height: H.
      width: W.

    Returns:
      uint8 `[H, W, 3]`, white where the picture is to be filled, which is each pixel with any
      paint, and black elsewhere.

    Raises:
      UserError: it is no image, damaged, larger, or of another aspect than the picture.
    """
    paint = (decode_opacity(painting, _MOST_PIXELS) > 0).astype(np.float32)
    rows, columns = paint.shape
    # A canvas is rounded to whole pixels. The editor undoes the choice of a picture, too, and then
    # its canvas has a shape of its own.
    if abs(rows - height * columns / width) >= 1 and abs(columns - width * rows / height) >= 1:
        raise UserError(
            "what is painted on has another shape than the picture: choose the picture again"
        )
    # The mean over a pixel is 0 where no part of it is painted.
    share = Image.fromarray(paint).resize((width, height), Image.Resampling.BOX)
    return np.repeat(np.uint8(255) * (np.asarray(share) > 0)[..., None], 3, axis=-1)

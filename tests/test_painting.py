"""What is painted over a picture: `ladd_jax.serving.painting`."""

import io

import numpy as np
import pytest
from PIL import Image

from ladd_jax.errors import UserError
from ladd_jax.serving.painting import canvas_of, painted_mask


def painting(opacity):
    """Paint of any colour, as opaque as this, encoded."""
    height, width = opacity.shape
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    pixels[..., 3] = opacity
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def test_any_paint_of_any_opacity_is_to_be_filled_and_nothing_else():
    opacity = np.zeros((6, 9), np.uint8)
    opacity[2:4, 5:] = [[1, 100, 200, 255]] * 2
    mask = painted_mask(painting(opacity), 6, 9)
    np.testing.assert_array_equal(mask, 255 * np.repeat(opacity[..., None] > 0, 3, axis=-1))
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("scale", [3, 40])
def test_a_painting_smaller_than_its_picture_covers_the_same_part_of_it(scale):
    opacity = np.zeros((6, 9), np.uint8)
    opacity[2:4, 5:] = 255
    mask = painted_mask(painting(opacity), 6 * scale, 9 * scale)
    expected = opacity.repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(mask[..., 0], expected)


def test_one_painted_pixel_is_not_lost_where_the_painting_is_larger_than_its_picture():
    opacity = np.zeros((640, 640), np.uint8)
    opacity[100, 639] = 1
    mask = painted_mask(painting(opacity), 8, 8)
    assert np.argwhere(mask[..., 0]).tolist() == [[1, 7]]


def test_a_painting_that_is_none_is_told():
    with pytest.raises(UserError, match="the bytes are not a JPEG, PNG"):
        painted_mask(b"paint", 8, 8)
    with pytest.raises(UserError, match="the image is damaged or cut"):
        painted_mask(painting(np.zeros((64, 64), np.uint8))[:4000], 8, 8)


@pytest.mark.parametrize(
    ("size", "canvas"),
    [((8, 8), (640, 640)), ((24, 48), (312, 624)), ((400, 640), (400, 640)),
     ((641, 100), (640, 100)), ((3000, 4000), (480, 640)), ((1, 5000), (1, 640))],
)  # fmt: skip
def test_a_picture_is_painted_on_at_a_size_that_a_brush_fits(size, canvas):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    shown = canvas_of(picture)
    assert shown.shape == (*canvas, 3) and shown.dtype == np.uint8
    if max(size) <= 640:
        factor = canvas[0] // size[0]
        np.testing.assert_array_equal(shown[::factor, ::factor], picture)

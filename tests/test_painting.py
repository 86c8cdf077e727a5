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


@pytest.mark.parametrize("size", [(2000, 3000), (641, 100), (1, 5000), (8, 12), (4001, 6000)])
def test_a_painting_of_another_shape_than_its_picture_is_told(size):
    rows, columns, _ = canvas_of(np.zeros((*size, 3), np.uint8)).shape
    whole = np.full((rows, columns), 255, np.uint8)
    assert painted_mask(painting(whole), *size).all()
    # As after the choice of the picture was undone, and one that was turned.
    for other in ((800, 800), (columns, rows), (rows + 40, columns)):
        with pytest.raises(UserError, match="has another shape than the picture: choose the pict"):
            painted_mask(painting(np.zeros(other, np.uint8)), *size)


def test_a_painting_larger_than_any_canvas_is_not_decoded():
    assert not painted_mask(painting(np.zeros((1024, 1024), np.uint8)), 8, 8).any()
    with pytest.raises(UserError, match="1024 x 1025 pixels and the limit is 1048576"):
        painted_mask(painting(np.zeros((1025, 1024), np.uint8)), 8, 8)


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

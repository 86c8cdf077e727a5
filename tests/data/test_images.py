"""Encoded images of every awkward kind, and fitting them to a bucket."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from ladd_jax.data.images import (
    MAX_PIXELS,
    decode_image,
    decode_opacity,
    fit,
    image_size,
    look_at_image,
    to_bytes,
)
from ladd_jax.whole_files import LFS_POINTER

FINE = {"quality": 100, "subsampling": 0}
"""JPEG with hardly a loss, in colours either."""


@functools.cache
def photograph():
    """A real photograph, small enough to be quick: 61 rows and 92 columns."""
    image = Image.fromarray(load_sample_image("china.jpg"))
    return image.resize((92, 61), Image.Resampling.LANCZOS)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(image, other):
    return np.abs(np.asarray(image, int) - np.asarray(other, int))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_every_pixel_back(kind):
    data = encoded(photograph(), kind, lossless=True)
    image = decode_image(data)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, photograph())
    assert image_size(data) == (61, 92)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_jpeg_keeps_its_colours(mode, options):
    data = encoded(photograph().convert(mode), "JPEG", **FINE, **options)
    # Four inks come inverted, as Adobe's programs write them and mark with their name.
    assert (b"Adobe" in data) == (mode == "CMYK")
    assert difference(decode_image(data), photograph()).mean() < 1


def test_red_in_four_inks_is_red():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert difference(decode_image(encoded(ink, "JPEG", **FINE)), (255, 0, 0)).max() <= 3


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_set_upright(kind, orientation):
    upright = np.asarray(photograph())
    # How a camera held that way stores the picture: row 0 and column 0 by the standard's table.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: upright.swapaxes(0, 1)[::-1],
        7: upright[::-1, ::-1].swapaxes(0, 1), 8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]  # fmt: skip
    options = FINE if kind == "JPEG" else {"lossless": True}
    image = Image.fromarray(np.ascontiguousarray(stored))
    data = encoded(image, kind, exif=exif(orientation), **options)
    decoded = decode_image(data)
    assert decoded.shape == upright.shape and image_size(data) == upright.shape[:2]
    assert difference(decoded, upright).mean() < (1 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_size_is_known_before_the_pixels(kind):
    # WebP keeps its metadata behind the pixels, and its decoder wants the whole file.
    data = encoded(photograph(), kind, exif=exif(6))
    start = data if kind == "WEBP" else data[: len(data) // 2]
    assert image_size(start) == (92, 61)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    data = encoded(photograph(), exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(data), photograph())
    assert image_size(data) == (61, 92)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_leave_the_image_readable():
    data = encoded(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode_image(data).shape == (61, 92, 3)
    assert image_size(data) == (61, 92)


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, depth, colour, rows, *extra):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def test_orientation_behind_the_pixels_of_a_png_is_seen():
    data = encoded(photograph())
    end = chunk(b"IEND", b"")
    tag = chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    turned = decode_image(data.removesuffix(end) + tag + end)
    np.testing.assert_array_equal(turned, np.rot90(photograph(), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode):
    alpha = Image.fromarray(np.linspace(0, 255, 92).astype(np.uint8)[None].repeat(61, 0))
    image = photograph().convert(mode[:-1])
    image.putalpha(alpha)
    part = np.asarray(alpha)[..., None] / 255
    expected = 255 * (1 - part) + np.asarray(photograph().convert(mode[:-1]).convert("RGB")) * part
    decoded = decode_image(encoded(image))
    assert difference(decoded, expected.round()).max() <= 1
    assert (decoded[:, 0] == 255).all()


def test_palettes_and_their_transparent_entries():
    image = photograph().quantize(16)
    np.testing.assert_array_equal(decode_image(encoded(image)), image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(image, "GIF")), image.convert("RGB"))
    clear = decode_image(encoded(image, transparency=3))
    index = np.asarray(image)
    assert (clear[index == 3] == 255).all()
    np.testing.assert_array_equal(clear[index != 3], np.asarray(image.convert("RGB"))[index != 3])


def test_a_transparent_colour_without_alpha_is_white():
    rows = b"\0" + bytes([9, 9, 9, 200, 10, 20])
    data = png(2, 1, 8, 2, rows, chunk(b"tRNS", struct.pack(">3H", 9, 9, 9)))
    assert decode_image(data).tolist() == [[[255] * 3, [200, 10, 20]]]


@pytest.mark.parametrize(
    ("depth", "colour", "pixels", "clear", "expected"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x7a", b"\0\7", [255, 170]),
        (16, 2, struct.pack(">6H", *[1000] * 3, *[40000] * 3), struct.pack(">3H", *[1000] * 3),
         [255, 156]),
    ],
)  # fmt: skip
def test_a_transparent_colour_of_any_depth_is_white(depth, colour, pixels, clear, expected):
    data = png(2, 1, depth, colour, b"\0" + pixels, chunk(b"tRNS", clear))
    assert decode_image(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_greyscale_is_the_same_in_three_channels(kind):
    grey = photograph().convert("L")
    image = decode_image(encoded(grey, kind, **FINE))
    assert (image == image[..., :1]).all()
    assert difference(image[..., 0], grey).mean() < 1


def test_one_bit_is_black_and_white():
    image = photograph().convert("1")
    np.testing.assert_array_equal(decode_image(encoded(image)), image.convert("RGB"))


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 256).astype(np.uint16)
    image = decode_image(encoded(Image.fromarray(values[None])))
    np.testing.assert_array_equal(image[0, :, 1], np.arange(256))


def test_a_transparent_grey_of_sixteen_bits_is_white():
    rows = b"\0" + struct.pack(">3H", 0, 257, 65535 // 2)
    data = png(3, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 257)))
    assert decode_image(data)[0, :, 0].tolist() == [0, 255, 127]


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colours_are_scaled(colour, channels):
    rows = b"\0" + struct.pack(f">{channels}H", *[40000] * (channels - 1), 65535)
    pixel = decode_image(png(1, 1, 16, colour, rows))[0, 0]
    expected = 255 if channels == 3 else 40000 / 257
    assert abs(int(pixel[0]) - 40000 / 257) <= 1 and abs(int(pixel[2]) - expected) <= 1


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert (decode_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the image has no bytes"),
        (LFS_POINTER + b"/spec/v1", "it is a pointer of git-lfs, and not the file: run `git lfs"),
        (b"<html>404</html>", "not a JPEG, PNG, WebP, GIF or BMP image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG, WebP, GIF or BMP"),
        (png(20_000, 20_000, 8, 2, b""), f"the limit of {MAX_PIXELS} pixels"),
        (png(2**14, 2**13 + 1, 1, 0, b""), f"16384 x 8193 pixels and the limit is {MAX_PIXELS}"),
    ],
    ids=["empty", "pointer", "page", "postscript", "huge", "over_the_limit"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bytes_that_are_not_an_image_are_an_error_in_a_sentence(data, message):
    for function in (decode_image, image_size):
        with pytest.raises(ValueError, match=message) as error:
            function(data)
        assert "\n" not in str(error.value)


KINDS = {
    "PNG": {}, "JPEG": {}, "progressive": {"progressive": True}, "WEBP": {"lossless": True},
    "GIF": {}, "BMP": {},
}  # fmt: skip


@functools.cache
def sample(kind):
    data = encoded(photograph(), "JPEG" if kind == "progressive" else kind, **KINDS[kind])
    return data, decode_image(data)


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_image_is_an_error(kind):
    data, _ = sample(kind)
    with pytest.raises(ValueError, match="damaged or cut|not a JPEG"):
        decode_image(data[: len(data) // 2])


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(KINDS)), part=st.floats(0, 1, exclude_max=True))
def test_a_cut_image_is_an_error_or_loses_nothing(kind, part):
    data, whole = sample(kind)
    try:
        image = decode_image(data[: int(part * len(data))])
    except ValueError:
        return
    np.testing.assert_array_equal(image, whole)


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(KINDS)), part=st.floats(0, 1))
def test_a_look_lets_no_cut_image_pass(kind, part):
    data, whole = sample(kind)
    cut = data[: int(part * len(data))]
    try:
        size = look_at_image(cut)
    except ValueError:
        with pytest.raises(ValueError):
            decode_image(cut)
        return
    assert size == decode_image(cut).shape[:2] == whole.shape[:2]


def test_a_look_finds_a_damaged_png_by_its_checksums_and_decodes_none_that_is_whole(monkeypatch):
    whole = {kind: sample(kind)[0] for kind in ("PNG", "JPEG", "WEBP")}
    damaged = bytearray(whole["PNG"])
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        look_at_image(bytes(damaged))
    monkeypatch.setattr("ladd_jax.data.images._decode", None)
    for kind, data in whole.items():
        assert look_at_image(data) == sample(kind)[1].shape[:2]
    with pytest.raises(TypeError):
        look_at_image(bytes(damaged))


@settings(max_examples=100)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32 - 1))
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_an_error_of_ours(kind, seed):
    rng = np.random.default_rng(seed)
    damaged = np.frombuffer(sample(kind)[0], np.uint8).copy()
    # Half of the damage falls on the headers, where most of the ways to fail are.
    for reach in (len(damaged), min(64, len(damaged))):
        damaged[rng.integers(0, reach, 2)] = rng.integers(0, 256, 2)
    for function in (decode_image, image_size):
        try:
            result = function(damaged.tobytes())
        except ValueError as error:
            assert str(error).startswith("the ")
        else:
            assert len(result) > 0


sides = st.integers(16, 64)


@settings(max_examples=50)
@given(rows=st.integers(40, 200), columns=st.integers(40, 200), height=sides, width=sides)
def test_a_circle_stays_a_circle_in_the_middle(rows, columns, height, width):
    scale = min(rows / height, columns / width)
    radius = 0.45 * scale * min(height, width)
    y, x = np.ogrid[:rows, :columns]
    distance = np.hypot(y - (rows - 1) / 2, x - (columns - 1) / 2)
    disk = (255 * np.clip(radius - distance + 0.5, 0, 1)).astype(np.uint8)
    result = fit(disk[..., None].repeat(3, -1), height, width)
    assert result.shape == (height, width, 3) and result.dtype == np.float32
    light = (result[..., 0] + 1) / 2
    down, across = light.max(1).sum(), light.max(0).sum()
    assert abs(down - across) <= 1
    assert abs(down - 2 * radius / scale) <= 1.5
    for axis, size in ((1, height), (0, width)):
        mass = light.sum(axis)
        assert abs((mass * np.arange(size)).sum() / mass.sum() - (size - 1) / 2) <= 0.1


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000), height=sides, width=sides)
@settings(max_examples=50)
def test_any_size_fits_any_other(rows, columns, height, width):
    image = np.full((rows, columns, 3), 64, np.uint8)
    result = fit(image, height, width)
    np.testing.assert_allclose(result, np.full((height, width, 3), 64 / 127.5 - 1), atol=1e-6)


def test_fitting_to_the_same_size_changes_nothing():
    image = np.asarray(photograph())
    result = fit(image, 61, 92)
    np.testing.assert_allclose(result, image / 127.5 - 1, atol=1e-6)
    assert result.min() >= -1 and result.max() <= 1


def test_the_longer_side_is_cropped_on_both_ends_alike():
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 255
    assert (fit(image, 32, 32) == 1).all()
    assert (fit(image.swapaxes(0, 1), 32, 32) == 1).all()


def test_fine_stripes_become_grey():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    middle = fit(image, 8, 8)[2:-2, 2:-2]
    assert np.abs(middle).max() < 0.02


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("first", [True, False])
def test_texts_and_profiles_of_any_size_cost_no_picture(kind, first):
    large = zlib.compress(bytes(2_000_000))
    content = (b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0") + large
    data, rows = encoded(photograph()), chunk(kind, content)
    place = 33 if first else -12  # After the header, or before the end.
    data = data[:place] + rows + data[place:]
    assert image_size(data) == (61, 92)
    np.testing.assert_array_equal(decode_image(data), np.asarray(photograph()))
    with pytest.raises(ValueError, match="damaged or cut|not a JPEG"):
        decode_image(data[: len(data) // 2])


def test_opacity_is_that_of_the_file_and_whole_where_it_has_none():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    for image, expected in (
        (Image.fromarray(pixels), pixels[..., 3]),
        (Image.fromarray(pixels[..., :3].copy()), np.full((5, 7), 255)),
        (Image.fromarray(pixels[..., 0].copy()), np.full((5, 7), 255)),
    ):
        stream = io.BytesIO()
        image.save(stream, "png")
        found = decode_opacity(stream.getvalue())
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="7 x 5 pixels and the limit is 34"):
        decode_opacity(stream.getvalue(), max_pixels=34)


@pytest.mark.filterwarnings("error")
def test_pixels_of_any_size_are_bytes_without_a_warning():
    largest = np.finfo(np.float32).max
    pixels = np.float32([-np.inf, -largest, -1.0, np.nan, 0.25, 1.0, largest, np.inf])
    np.testing.assert_array_equal(to_bytes(pixels), [0, 0, 0, 128, 159, 255, 255, 255])

"""Turns encoded images into arrays of the shape of a bucket.

H W rows and columns of an image, in pixels.
"""

import contextlib
import functools
import io
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image

from ladd_jax.errors import UserError, brief
from ladd_jax.whole_files import refuse_pointer

Read = TypeVar("Read")

MAX_PIXELS = 2**27
"""Largest image to decode, more than cameras take: without a limit a small file could fill all
memory."""

# Other formats are not meant for photographs, and one of them starts a program to decode.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

_PNG = b"\x89PNG\r\n\x1a\n"
# Place of the byte with the bits per channel, in the header that comes first in a PNG.
_PNG_DEPTH = 24
_JPEG, _JPEG_END, _WEBP = b"\xff\xd8", b"\xff\xd9", b"RIFF"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")

_ORIENTATION = 0x0112
# How to turn an image of each orientation upright (Exif 2.3, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(data: bytes) -> tuple[int, int]:
    """Upright height and width of an encoded image, read from the part before its pixels.

    A PNG may state its orientation after the pixels, where only `decode_image` sees it.

    Raises:
      UserError: the bytes do not begin like an image, or the image is too large to decode.
    """
    return _forgiving_texts(_size, data)


def _size(data: bytes) -> tuple[int, int]:
    image = _open(data)
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def look_at_image(
    data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = False
) -> tuple[int, int]:
    """Upright height and width of an image that `decode_image` will be able to decode.

    Only the header is read if the file is evidently whole; any other file is decoded as a test.
    Damage in the middle of a JPEG or WebP shows only when it is decoded, and often not even then.
    With `decode` every file is decoded.

    Raises:
      UserError: as `decode_image`.
    """
    if not decode and _is_evidently_whole(data):
        height, width = image_size(data)
        if height * width <= max_pixels:
            return height, width
    height, width, _ = decode_image(data, max_pixels).shape
    return height, width


def _is_evidently_whole(data: bytes) -> bool:
    """Whether a file ends where its format says, and its checksums, if any, are right."""
    if data.startswith(_JPEG):
        return data.endswith(_JPEG_END)
    if data.startswith(_WEBP):
        return len(data) == 8 + int.from_bytes(data[4:8], "little")
    if not data.startswith(_PNG):
        return False
    start, pixels = len(_PNG), False
    while start < len(data):
        length, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        stop = start + 8 + length
        checksum = int.from_bytes(data[stop : stop + 4])
        # An orientation may follow the pixels, as EXIF or as text, where only decoding finds it.
        late = name == b"eXIf" or (pixels and name in (b"iTXt", b"tEXt", b"zTXt"))
        if late or zlib.crc32(data[start + 4 : stop]) != checksum:
            return False
        if name == b"IEND":
            return True
        pixels |= name == b"IDAT"
        start = stop + 4
    return False


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An encoded image, upright, transparent parts on white. Colour profiles are ignored.

    Args:
      data: bytes of a JPEG, PNG, WebP, GIF or BMP file, of any colours and depth. If there are
        several frames, the first is taken.
      max_pixels: largest number of pixels to decode.

    Returns:
      uint8 `[H, W, 3]`, RGB.

    Raises:
      UserError: there are no bytes, they are not an image, or the image is damaged, cut or larger
        than `max_pixels`.
      MemoryError: there is no memory for an image that is otherwise fine.
    """
    return _forgiving_texts(functools.partial(_decode, max_pixels=max_pixels), data)


def _decode(data: bytes, max_pixels: int) -> np.ndarray:
    image = _open(data, max_pixels)
    with _damage_told():
        image.load()
        orientation = _orientation(image)
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return np.array(image)


def decode_opacity(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """How opaque each pixel of an encoded image is, as it lies in the file.

    Args:
      data: bytes of a file that `decode_image` reads.
      max_pixels: largest number of pixels to decode.

    Returns:
      uint8 `[H, W]`: 0 is transparent, 255 is opaque. An image without transparency is all opaque.

    Raises:
      UserError: as `decode_image`.
    """
    image = _open(data, max_pixels)
    with _damage_told():
        return np.array(image.convert("RGBA").getchannel("A"))


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """A block in which any error of a decoder becomes a `UserError`."""
    try:
        yield
    # Decoders raise errors of almost every kind for damaged files. A lack of memory is the
    # machine's fault, and no reason to leave the file out.
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"the image is damaged or cut: {error}") from error


@contextlib.contextmanager
def memory_for(name: str) -> Iterator[None]:
    """A block whose MemoryError names what the memory was for."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{brief(error)}, for {name}") from error


def _forgiving_texts(read: Callable[[bytes], Read], data: bytes) -> Read:
    """The result of `read`, which is tried again without a PNG's texts and profile if it fails.

    The library refuses texts and profiles above a megabyte, and some programs write larger ones.
    """
    try:
        return read(data)
    except UserError:
        bare = _without_texts(data)
        if bare == data:
            raise
        return read(bare)


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts and colour profile; any other file as it is."""
    if not data.startswith(_PNG):
        return data
    parts, start = [_PNG], len(_PNG)
    while start < len(data):
        stop = start + 12 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] not in _TEXT_CHUNKS:
            parts.append(data[start:stop])
        start = stop
    return b"".join(parts)


def _open(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    if not data:
        raise UserError("the image has no bytes")
    refuse_pointer(data, "it")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"the image has more than the limit of {MAX_PIXELS} pixels: scale it down"
        ) from error
    except Exception as error:
        raise UserError("the bytes are not a JPEG, PNG, WebP, GIF or BMP image") from error
    if image.width * image.height > max_pixels:
        raise UserError(
            f"the image has {image.width} x {image.height} pixels and the limit is {max_pixels}: "
            f"scale it down"
        )
    if data.startswith(_PNG):
        _scale_transparency(image, depth=data[_PNG_DEPTH])
    return image


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Gives the transparent grey or colour of a PNG the depth of the pixels.

    The library scales pixels to 8 bits and leaves this value as it is in the file, so that it would
    be the value of no pixel, or of others. 16-bit greyscale is left at its depth by both. Of 16-bit
    colours, all that are the same in 8 bits become transparent.
    """
    value = image.info.get("transparency")
    if image.mode in ("1", "L") and isinstance(value, int) and depth < 8:
        image.info["transparency"] = value * 255 // (2**depth - 1)
    elif image.mode == "RGB" and isinstance(value, tuple) and depth == 16:
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's method, since PNG's own method decodes the image first.
        orientation = int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    # Cameras and editors write damaged metadata; the image may be whole all the same.
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit greyscale to 8 bits; the library would clip it instead."""
    values = np.asarray(image, np.uint32)
    scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        opaque = (values != transparent) * np.uint8(255)
        scaled.putalpha(Image.fromarray(opaque))
    return scaled


def fit(image: np.ndarray, height: int, width: int, channels: int = 3) -> np.ndarray:
    """The largest centred part of an image with the aspect of a size, resized to that size.

    Both axes are scaled alike, so nothing is stretched. The filter is Lanczos', which widens with
    the pixels of the result and so does not alias. An image that has the size stays as it is.

    Args:
      image: uint8 `[H, W, 3]`.
      height: height of the result, in pixels.
      width: width of the result, in pixels.
      channels: 3 for colours, or 1 for their luma (ITU-R BT.601): equal channels keep their values.

    Returns:
      float32 `[height, width, channels]` in [-1, 1].
    """
    rows, columns, _ = image.shape
    scale = min(rows / height, columns / width)
    top, left = (max(0.0, (a - b * scale) / 2) for a, b in ((rows, height), (columns, width)))
    coloured = Image.fromarray(image)
    resized = (coloured.convert("L") if channels == 1 else coloured).resize(
        (width, height), Image.Resampling.LANCZOS, box=(left, top, columns - left, rows - top)
    )
    return np.asarray(resized, np.float32).reshape(height, width, channels) / 127.5 - 1


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """An image or a mask, with rows and columns as its first axes, whose pixels each become
    `factor` by `factor` pixels."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels as image files hold them, uint8, from floats in [-1, 1] of any shape.

    Values outside are clipped, and NaN becomes middle grey.
    """
    inside = np.clip(np.nan_to_num(pixels), -1, 1)
    return ((inside + 1) * 127.5).round().astype(np.uint8)

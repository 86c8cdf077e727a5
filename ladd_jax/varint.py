"""Whole numbers in files of protocol buffers: 7 bits in a byte, the lowest first."""

_MOST_BITS = 63
"""The most bits of a number before its last byte."""


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """The number that begins at a place, and the place after it.

    Raises:
      IndexError: the data end within the number.
      ValueError: the number has more than 64 bits.
    """
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > _MOST_BITS:
            raise ValueError("a number of more than 64 bits")


def write_varint(value: int) -> bytes:
    """The bytes of a number, which is not negative."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])

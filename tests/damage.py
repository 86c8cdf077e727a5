"""Files that are damaged in ways that several tests share."""


def damage_within(picture):
    """Makes a JPEG one that looks whole and cannot be decoded."""
    data = bytearray(picture.read_bytes())
    # Lengths of codes: what is behind them cannot be read with others.
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = bytes(16)
    picture.write_bytes(data)

"""Records that are read straight into the rows of a batch.

A file of records is Riegeli's (`riegeli/doc/riegeli_records_file_format.md` in its repository):
blocks of 64 KiB, each with a header of 24 bytes, which hold chunks, here of one record, not
compressed. A library would copy a record four times before its arrays lie in a batch. So `indexed`
puts before each record where its fields are, with a digest of them, as a field of the protocol
buffer whose number `tf.train.Example` does not have and which all its readers pass over. With that
`DirectFiles` has the system copy the bytes, once.
"""

import functools
import io
import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from ladd_jax.varint import read_varint, write_varint

_LOG = logging.getLogger(__name__)

_UNREADABLE = (EOFError, OSError, ValueError, OverflowError)
"""Of a file that is cut or damaged, and of numbers in it that no file can have."""

_BLOCK, _BLOCK_HEADER = 2**16, 24
_USED = _BLOCK - _BLOCK_HEADER
"""Bytes of a block that are not its header; places in a file are counted in these alone."""

_CHUNK = struct.Struct("<8xQ8xQQ")
"""Header of a chunk: its bytes, its type with the number of its records, and theirs."""

_ONE_RECORD = ord("r") + (1 << 8)
_SPARE = 8
"""Bytes that at most lie between the header of a chunk of one record and the record."""

_TAG = b"\x7a"
"""A field 15, of bytes."""

_IOV_MAX = 1000
"""Pieces of memory that one call of the system fills; it allows 1024."""

_CACHED = 2**18
"""Bytes that caches of a core hold."""

_MOST_OPEN = 256
"""Files that are open at once."""

_READS = hasattr(os, "preadv")
"""Whether the system reads into several places at once; not every one does."""

TEXTS = ("key", "prompt")
"""Fields of a record besides its arrays."""


def indexed(example: bytes) -> bytes:
    """A serialized `tf.train.Example` with what is needed to read it directly.

    One with values that are not bytes is given back as it is.
    """
    try:
        fields = dict(sorted(_fields(example)))
    except (IndexError, ValueError):
        return example
    length = _index_size(len(fields))
    prefix = _TAG + write_varint(length)
    # Places count from the start of what is returned.
    shift = len(prefix) + length
    body = b"".join(
        _FIELD.pack(start + shift, stop - start, _digest(example[start:stop]))
        for start, stop in fields.values()
    )
    return prefix + _index_digest(list(fields), body) + body + example


_FIELD = struct.Struct("<QQ8s")
"""In the index of a record: where a field begins, its bytes, and their digest."""


def _index_size(fields: int) -> int:
    return 8 + _FIELD.size * fields


def _digest(value: bytes | memoryview) -> bytes:
    # As fast as memory, and not against those who mean harm.
    return xxhash.xxh3_64_digest(value)


def _index_digest(names: Sequence[str], body: bytes) -> bytes:
    return _digest("\0".join(names).encode() + body)


def _parts(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Tag, start and stop of each part of a message that has no others than those of bytes."""
    while start < stop:
        tag = data[start]
        if tag & 7 != 2 or tag > 127:
            raise ValueError(f"a field of tag {tag}")
        length, start = read_varint(data, start + 1)
        yield tag >> 3, start, start + length
        start += length


def _fields(example: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, start and stop of the value of each field of an Example, where it is one of bytes."""
    ((_, *features),) = _parts(example, 0, len(example))
    for _, *entry in _parts(example, *features):
        (_, *name), (_, *feature) = _parts(example, *entry)
        ((kind, *values),) = _parts(example, *feature)
        ((_, start, stop),) = _parts(example, *values)
        if kind != 1:
            raise ValueError("numbers, not bytes")
        yield example[slice(*name)].decode(), (start, stop)


class DirectFiles:
    """Files of records, each opened when it is first read; for several threads.

    Of each file 8 bytes of memory are kept for a record.
    """

    def __init__(self) -> None:
        """Starts without files; where the system cannot read into several places, with none."""
        self._starts: dict[str, np.ndarray | None] = {}
        self._lock = threading.Lock()
        self._opened = functools.lru_cache(_MOST_OPEN)(io.FileIO)

    def read(
        self,
        path: str,
        number: int,
        count: int,
        arrays: Iterable[str],
        rows: Mapping[str, np.ndarray],
    ) -> dict[str, str] | None:
        """Reads a record.

        Args:
          path: its file.
          number: its number there.
          count: records of the file.
          arrays: names of all of its arrays.
          rows: arrays to fill, by the names of those that are wanted.

        Returns:
          `TEXTS` of the record; None where it cannot be read so: it is another or damaged, its file
          is not here or not of `indexed` records without compression. Rows may have changed then.
        """
        if not _READS:
            return None
        try:
            file = self._opened(path)
            starts = self._chunk_starts(path, file, count)
            if starts is None:
                return None
            views = {name: row.reshape(-1).view(np.uint8).data for name, row in rows.items()}
            found = _read_record(file, int(starts[number]), arrays, views)
            return {name: text.decode() for name, text in found.items()}
        except _UNREADABLE:
            return None

    def _chunk_starts(self, path: str, file: io.FileIO, count: int) -> np.ndarray | None:
        # Most reads are of a file that one has looked at: they do not wait.
        if path in self._starts:
            return self._starts[path]
        with self._lock:
            if path not in self._starts:
                try:
                    starts = _chunk_starts(file, count)
                except _UNREADABLE:
                    starts = None
                if starts is None:
                    _LOG.info("%s is read through the library, which takes longer", path)
                self._starts[path] = starts
            return self._starts[path]


def _chunk_starts(file: io.FileIO, count: int) -> np.ndarray | None:
    """Where the chunks of a file's records begin, int64 `[count]`.

    None where they are not the first ones of the file, each of one record, without compression.
    """
    starts, header = np.empty(count, np.int64), memoryview(bytearray(_CHUNK.size + 1))
    # The first chunk is the file's signature, and nothing but a header.
    start = _CHUNK.size
    for number in range(count):
        _read(file, start, [header])
        size, kind, _ = _CHUNK.unpack(header[: _CHUNK.size])
        if kind != _ONE_RECORD or header[-1]:
            return None
        starts[number] = start
        start += _CHUNK.size + size
    return starts


def _read_record(
    file: io.FileIO, start: int, arrays: Iterable[str], rows: Mapping[str, memoryview]
) -> dict[str, bytearray]:
    """Reads a record into rows, from where its chunk begins, and gives its `TEXTS`.

    Raises:
      EOFError, ValueError: it is another or damaged.
    """
    names = sorted([*arrays, *TEXTS])
    length = _index_size(len(names))
    prefix = _TAG + write_varint(length)
    head = bytearray(_CHUNK.size + _SPARE + len(prefix) + length)
    _read(file, start, [memoryview(head)])
    size, kind, record_size = _CHUNK.unpack_from(head)
    record = _CHUNK.size + size - record_size
    index = record + len(prefix)
    body = bytes(head[index + 8 : index + length])
    if kind != _ONE_RECORD or head[record:index] != prefix:
        raise ValueError("no record with an index")
    if head[index : index + 8] != _index_digest(names, body):
        raise ValueError("another index")
    texts: dict[str, bytearray] = {}
    wanted: list[tuple[int, memoryview, bytes]] = []
    for name, (place, count, digest) in zip(names, _FIELD.iter_unpack(body), strict=True):
        if name in TEXTS:
            texts[name] = bytearray(count)
        if name in TEXTS or name in rows:
            value = rows[name] if name in rows else memoryview(texts[name])
            if len(value) != count or place + count > record_size:
                raise ValueError("an array of another size")
            wanted.append((place, value, digest))
    wanted.sort(key=lambda found: found[0])
    run = _Run(file, start + record)
    digests = [run.read(place, value) for place, value, _ in wanted]
    run.flush()
    if any(d.digest() != w for d, (*_, w) in zip(digests, wanted, strict=True)):
        raise ValueError("another digest")
    return texts


class _Run:
    """Reads of one record, in order: as few as can be, each digested while caches hold it."""

    def __init__(self, file: io.FileIO, start: int):
        self._file, self._start = file, start
        self._first = self._filled = 0
        self._views: list[memoryview] = []
        self._due: list[tuple[Any, memoryview]] = []

    def read(self, place: int, value: memoryview) -> Any:
        """Fills memory with what is at a place of the record; its digest holds after `flush`."""
        digest = xxhash.xxh3_64()
        for at in range(0, len(value), _CACHED):
            part = value[at : at + _CACHED]
            beside = place + at - self._filled
            if beside > _BLOCK or self._filled - self._first >= _CACHED:
                self.flush()
            if not self._views:
                self._first = place + at
            elif beside:
                self._views.append(memoryview(bytearray(beside)))
            self._views.append(part)
            self._due.append((digest, part))
            self._filled = place + at + len(part)
        return digest

    def flush(self) -> None:
        """Reads what is still to be read."""
        _read(self._file, self._start + self._first, self._views)
        for digest, view in self._due:
            digest.update(view)
        self._views, self._due = [], []


_UNUSED = memoryview(bytearray(_BLOCK_HEADER))
"""Where headers of blocks go, those of all threads."""


def _read(file: io.FileIO, start: int, views: Sequence[memoryview]) -> None:
    """Fills views with what is in a file from a place on.

    Raises:
      EOFError: the file ends before.
    """
    block, within = divmod(start, _USED)
    position, left = block * _BLOCK + _BLOCK_HEADER + within, _USED - within
    pieces: list[memoryview] = []
    for view in views:
        if not left:
            pieces.append(_UNUSED)
            left = _USED
        pieces.append(view[:left])
        for at in range(left, len(view), _USED):
            pieces += (_UNUSED, view[at : at + _USED])
        left = (left - len(view)) % _USED
    for first in range(0, len(pieces), _IOV_MAX):
        some = pieces[first : first + _IOV_MAX]
        size = sum(map(len, some))
        if os.preadv(file.fileno(), some, position) != size:
            raise EOFError
        position += size

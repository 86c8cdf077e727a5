"""Reads records straight into the rows of a batch.

A file of records has Riegeli's format (`riegeli/doc/riegeli_records_file_format.md` in its
repository): blocks of 64 KiB, each with a header of 24 bytes, that hold chunks, here of one record
each and not compressed. A library copies a record four times before its arrays are in a batch. So
`indexed` puts an index before each record, which says where its fields are and what their digests
are. The index is a field of the protocol buffer with a number that `tf.train.Example` does not
have, so all its readers skip it. With it `DirectFiles` lets the system copy the bytes just once.
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
"""What reading raises for a file that is cut or damaged, or has numbers that no file can have."""

_BLOCK, _BLOCK_HEADER = 2**16, 24
_USED = _BLOCK - _BLOCK_HEADER
"""Bytes of a block without its header; places in a file count these bytes only."""

_CHUNK = struct.Struct("<8xQ8xQQ")
"""Header of a chunk: its size, its type with the number of records, and the records' size."""

_ONE_RECORD = ord("r") + (1 << 8)
_SPARE = 8
"""Most bytes between the header of a chunk of one record and the record."""

_TAG = b"\x7a"
"""Tag of field 15, of bytes: the index."""

_IOV_MAX = 1000
"""Pieces of memory that one system call fills; the limit is 1024."""

_CACHED = 2**18
"""Bytes that fit into a core's caches."""

_MOST_OPEN = 256
"""Most files that are open at once."""

_READS = hasattr(os, "preadv")
"""Whether the system can read into several places at once; not every system can."""

TEXTS = ("key", "prompt")
"""Fields of a record besides its arrays."""


def indexed(example: bytes) -> bytes:
    """A serialized `tf.train.Example` with the index that is needed to read it directly.

    An example with values other than bytes is returned as it is.
    """
    try:
        fields = dict(sorted(_fields(example)))
    except (IndexError, ValueError):
        return example
    length = _index_size(len(fields))
    prefix = _TAG + write_varint(length)
    # Places count from the start of the returned bytes, which is before the index.
    shift = len(prefix) + length
    body = b"".join(
        _FIELD.pack(start + shift, stop - start, _digest(example[start:stop]))
        for start, stop in fields.values()
    )
    return prefix + _index_digest(list(fields), body) + body + example


_FIELD = struct.Struct("<QQ8s")
"""A field in the index of a record: its place, its number of bytes, and their digest."""


def _index_size(fields: int) -> int:
    return 8 + _FIELD.size * fields


def _digest(value: bytes | memoryview) -> bytes:
    # As fast as memory. It finds damage, and is no protection against an attacker.
    return xxhash.xxh3_64_digest(value)


def _index_digest(names: Sequence[str], body: bytes) -> bytes:
    return _digest("\0".join(names).encode() + body)


def _parts(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and stop of each field of a message whose fields are all bytes."""
    while start < stop:
        tag = data[start]
        if tag & 7 != 2 or tag > 127:
            raise ValueError(f"a field of tag {tag}")
        length, start = read_varint(data, start + 1)
        yield tag >> 3, start, start + length
        start += length


def _fields(example: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, and start and stop of the value, of each field of an Example; all must be bytes."""
    ((_, *features),) = _parts(example, 0, len(example))
    for _, *entry in _parts(example, *features):
        (_, *name), (_, *feature) = _parts(example, *entry)
        ((kind, *values),) = _parts(example, *feature)
        ((_, start, stop),) = _parts(example, *values)
        if kind != 1:
            raise ValueError("numbers, not bytes")
        yield example[slice(*name)].decode(), (start, stop)


class DirectFiles:
    """Files of records, each opened when it is first read; several threads may read.

    Each record takes 8 bytes of memory.
    """

    def __init__(self) -> None:
        """Starts without files."""
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
          path: the record's file.
          number: the record's number in the file.
          count: number of records in the file.
          arrays: names of all arrays of the record.
          rows: arrays to fill, by the names of the wanted arrays.

        Returns:
          `TEXTS` of the record; None if it cannot be read directly: it is another record or
          damaged, its file is not here, or is not of `indexed` records without compression, or the
          system cannot. `rows` may have changed then.
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
        # Most reads are from a file whose starts are known, and need not wait for the lock.
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

    None if the first chunks of the file are not of one record each, without compression.
    """
    starts, header = np.empty(count, np.int64), memoryview(bytearray(_CHUNK.size + 1))
    # The first chunk is the file's signature, which is only a header.
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
    """Reads the record whose chunk begins at `start` into rows, and returns its `TEXTS`.

    Raises:
      EOFError, ValueError: it is damaged, or not a record with these arrays and an index.
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
    """The reads of one record, in order: as few as possible, each digested while still in cache."""

    def __init__(self, file: io.FileIO, start: int):
        self._file, self._start = file, start
        self._first = self._filled = 0
        self._views: list[memoryview] = []
        self._due: list[tuple[Any, memoryview]] = []

    def read(self, place: int, value: memoryview) -> Any:
        """Fills memory from a place of the record; its digest is complete after `flush`."""
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
        """Carries out the reads that are still due."""
        _read(self._file, self._start + self._first, self._views)
        for digest, view in self._due:
            digest.update(view)
        self._views, self._due = [], []


_UNUSED = memoryview(bytearray(_BLOCK_HEADER))
"""Memory for the headers of blocks, which nobody reads; all threads write into it."""


def _read(file: io.FileIO, start: int, views: Sequence[memoryview]) -> None:
    """Fills views with a file's bytes from a place on, without the headers of blocks.

    Raises:
      EOFError: the file ends before the views are full.
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

"""What the records of a set of shards were made of, record by record.

A set keeps a digest of what went into each of its records. When data change, the digests show which
records did: only their shards are written again, and records added at the end get shards beside the
others.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.data import archives
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import Layout, Shard, reopen, shard_files
from ladd_jax.data.sources import Source
from ladd_jax.errors import DamagedError
from ladd_jax.whole_files import write_whole

Contents = Mapping[Bucket, np.ndarray]
"""Digests of the records of each bucket, uint64 `[n]`, in their order."""

_FILE = "records.npz"


def digests(texts: Iterable[str]) -> np.ndarray:
    """A digest of each text, uint64 `[n]`."""
    found = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    # Numbers, one by one: ten million objects of bytes would take as much memory as the texts.
    return np.fromiter((int.from_bytes(digest[:8], "little") for digest in found), np.uint64)


def contents_of(source: Source) -> dict[Bucket, np.ndarray]:
    """Contents of a source's own records, without those of its `held_out`."""
    return {bucket: digests(source.texts(bucket)) for bucket in source.prompts}


def same(old: Contents, new: Contents) -> bool:
    """Whether contents are the same."""
    return old.keys() == new.keys() and all(np.array_equal(old[b], new[b]) for b in new)


def in_turn(contents: Contents, samples: int) -> dict[Bucket, np.ndarray]:
    """Contents of so many samples, made for the records in turn; 0: one sample for each record."""
    return {
        bucket: found[np.arange(samples or len(found)) % len(found)]
        for bucket, found in contents.items()
    }


def summary(contents: Contents, inputs: Mapping[str, str]) -> str:
    """One digest of a whole set: of its records, and of what else went into all of them."""
    whole = hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode())
    for bucket in sorted(contents):
        whole.update(f"{bucket.name} {len(contents[bucket])} ".encode())
        whole.update(contents[bucket].astype("<u8").tobytes())
    return whole.hexdigest()


def read_contents(directory: Path) -> dict[Bucket, np.ndarray] | None:
    """The contents that a set keeps; None for sets of older versions.

    Raises:
      DamagedError: the file is damaged.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    remedy = (
        f"put a copy of it there, or remove {directory} and run the stage that writes it (encode "
        f"or synthesize) again"
    )
    found = archives.read(path, remedy)
    for name, array in found.items():
        if not Bucket.is_name(name) or array.dtype != np.uint64 or array.ndim != 1:
            raise DamagedError(
                f"{path} is damaged ({name} is not a list of a bucket's digests): {remedy}"
            )
    return {Bucket.parse(name): array for name, array in found.items()}


def write_contents(directory: Path, contents: Contents) -> None:
    """Writes the contents of a set into its folder, which must exist."""
    arrays: dict[str, Any] = {bucket.name: found for bucket, found in contents.items()}
    write_whole(directory / _FILE, lambda file: np.savez(file, allow_pickle=False, **arrays))


@dataclasses.dataclass(frozen=True)
class Change:
    """What happens to the shards of a set when its contents change.

    Attributes:
      stays: files that stay as they are, each with the shard that it becomes.
      grows: files whose records stay but get more behind them; they are written again.
      stale: files with records that change, each with its bucket and the number of its shard.
      first: place of the first record that changes, for each bucket that has one.
      missing: number of shards to write, including those that grow or are stale.
    """

    stays: list[tuple[Path, Shard]]
    grows: list[Path]
    stale: dict[Path, tuple[Bucket, int]]
    first: dict[Bucket, int]
    missing: int


def compare(directory: Path, old: Contents, new: Contents, records_per_shard: int) -> Change:
    """What happens to the shards on disk when the contents of their set change.

    Args:
      directory: folder of the set.
      old: contents that the shards were made of.
      new: contents that the set is to have.
      records_per_shard: number of records in a shard, the same for both.
    """
    sizes = {bucket: len(found) for bucket, found in new.items()}
    shards = {
        (shard.bucket, shard.index): shard
        for shard in Layout(sizes, records_per_shard, {}).shards()
    }
    none = np.empty(0, np.uint64)
    found = Change([], [], {}, {}, 0)
    for file, bucket, index in shard_files(directory):
        places = slice(index * records_per_shard, (index + 1) * records_per_shard)
        before, after = (contents.get(bucket, none)[places] for contents in (old, new))
        common = min(len(before), len(after))
        equal = before[:common] == after[:common]
        if len(before) > len(after) or not equal.all():
            found.stale[file] = bucket, index
            place = places.start + (common if equal.all() else int(np.argmin(equal)))
            found.first[bucket] = min(place, found.first.get(bucket, place))
        elif len(after) > len(before):
            found.grows.append(file)
        else:
            found.stays.append((file, shards[bucket, index]))
    return dataclasses.replace(found, missing=len(shards) - len(found.stays))


def apply(directory: Path, change: Change, new: Contents) -> None:
    """Turns a set into an incomplete one of new contents, in which the files that stay are renamed.

    It can be stopped at any moment and called again, with a new result of `compare`.

    Args:
      directory: folder of the set.
      change: the result of `compare`.
      new: contents that the set is to have.
    """
    reopen(directory)
    for file in (*change.stale, *change.grows):
        file.unlink(missing_ok=True)
    for file, shard in change.stays:
        if file != shard.path(directory):
            os.replace(file, shard.path(directory))
    for folder in directory.iterdir():
        if folder.is_dir() and Bucket.is_name(folder.name) and Bucket.parse(folder.name) not in new:
            shutil.rmtree(folder)
    write_contents(directory, new)

"""A set of latent shards on disk: a tensorflow-datasets folder of ArrayRecord files, one split for
each bucket.

The names of all files follow from the layout alone, and the metadata are written last.
`shard_writing` writes sets, and `shards` reads them.

H W latent grid, C channels.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.direct import TEXTS
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.whole_files import read_json, write_text_whole

LATENTS = "latents"
"""Name of the array that is noised. All other arrays of a record are its cond."""

NAME = "latents"
VERSION = "2.0.0"
VERSIONS = (VERSION, "1.0.0")
"""Versions that are read; 1.0.0 has lists of numbers instead of bytes."""

ARRAYS = "arrays.json"
NULL = "null_text.npz"
_IDENTITY = "identity.json"
TEXT = "text.json"
FINGERPRINTS = "fingerprints.json"

AGAIN = (
    "remove that directory and run the stage that writes it (encode or synthesize) again, or put a "
    "copy of it there"
)
"""What a user can do about a damaged set, for the end of messages."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Where a set's cond is: each record has that of the record at the same place in another set.

    Attributes:
      set: name of the other set's folder, which is beside this set's.
      sizes: number of records in each bucket of the other set. Places beyond it start again at 0.
        Records that are added to the other set later do not change it.
    """

    set: str
    sizes: Mapping[Bucket, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set of shards will hold, known before the first record.

    Attributes:
      sizes: number of records in each bucket.
      records_per_shard: number of records in every file but the last of a bucket.
      arrays: arrays of every record, by name. Without `latents` the set holds only prompts. All
        other arrays are the record's cond.
      text: the set that has the cond of all records; None: it is among the arrays.

    Raises:
      UserError: an array has the name of a record's text, `key` or `prompt`.
    """

    sizes: Mapping[Bucket, int]
    records_per_shard: int
    arrays: Mapping[str, ArraySpec]
    text: Text | None = None

    def __post_init__(self) -> None:
        for name in TEXTS:
            if name in self.arrays:
                raise UserError(
                    f"an array of the records is named {name!r}, which is a text of every record: "
                    f"use another name"
                )

    def shards(self) -> Iterator["Shard"]:
        """All shards, in order."""
        for bucket in sorted(self.sizes):
            size = self.sizes[bucket]
            count = -(-size // self.records_per_shard)
            for index in range(count):
                start = index * self.records_per_shard
                yield Shard(bucket, index, count, start, min(start + self.records_per_shard, size))

    def features(self, bucket: Bucket) -> tfds.features.FeaturesDict:
        """The features of tfds that a record of a bucket has."""
        arrays: dict[str, Any] = {}
        for name, spec in self.arrays.items():
            arrays |= spec.features(name, bucket)
        texts = {name: tfds.features.Text() for name in TEXTS}
        return tfds.features.FeaturesDict(arrays | texts)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: records `start` to `stop` of a bucket."""

    bucket: Bucket
    index: int
    count: int
    start: int
    stop: int

    def path(self, directory: str | Path) -> Path:
        """Path of the file in the folder of its set."""
        split = f"b{self.bucket.name}"
        name = f"{NAME}-{split}.array_record-{self.index:05d}-of-{self.count:05d}"
        return bucket_directory(directory, self.bucket) / name


def version_folder(folder: Path) -> Path:
    """The folder of the newest version of a bucket's files, or where it would be."""
    return next((folder / name for name in VERSIONS if (folder / name).is_dir()), folder / VERSION)


def bucket_directory(directory: str | Path, bucket: Bucket) -> Path:
    # Each bucket is a dataset of its own, since tfds has one record shape for all of its splits.
    return Path(directory) / bucket.name / VERSION


def shard_files(directory: Path) -> list[tuple[Path, Bucket, int]]:
    """The existing files of shards, whole or not, each with its bucket and number."""
    found = []
    for file in sorted(directory.glob(f"*/{VERSION}/{NAME}-b*.array_record-*-of-*")):
        name = file.parent.parent.name
        index = file.name.partition(".array_record-")[2].partition("-of-")[0]
        if Bucket.is_name(name) and index.isdecimal():
            found.append((file, Bucket.parse(name), int(index)))
    return found


def reopen(directory: str | Path) -> None:
    """Marks a set as not complete, so that more can be written to it."""
    for name in (NULL, FINGERPRINTS):
        (Path(directory) / name).unlink(missing_ok=True)


def is_complete(directory: str | Path) -> bool:
    """Whether a set was finalized."""
    return (Path(directory) / NULL).exists()


def check_complete(directory: str | Path) -> None:
    """Raises NotFoundError where a set was not finalized."""
    if not is_complete(directory):
        raise NotFoundError(
            f"no complete latent shards in {directory}: run the command that writes them, "
            f"`python -m ladd_jax.encode` or, for the data generator's samples, "
            f"`python -m ladd_jax.synthesize`, which goes on where it was stopped"
        )


def write_identity(directory: str | Path, identity: Mapping[str, Any]) -> None:
    """Writes down what a set is made of, before the first of its shards is written.

    Args:
      directory: folder of the set; made if it does not exist.
      identity: what `read_identity` is to return; it must fit into JSON.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_text_whole(Path(directory) / _IDENTITY, json.dumps(identity, indent=2) + "\n")


def read_identity(directory: str | Path) -> dict[str, Any]:
    """What a set was made of, as given to `write_identity`; empty for sets of older versions.

    Raises:
      DamagedError: the file is damaged.
    """
    path = Path(directory) / _IDENTITY
    return read_json(path, AGAIN) if path.exists() else {}

"""Latent shards: a tensorflow-datasets folder of ArrayRecord files, one split for each bucket.

The names of all files follow from the layout alone, each file appears whole or not at all, and the
metadata come last. So a writer can be stopped at any moment and started again, by another number
of hosts too, and every record is written once.

H W latent grid, C channels.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.whole_files import write_whole
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.parallel.processes import barrier

LATENTS = "latents"
"""Name of the array that is noised; all other arrays of a record are its cond."""

_TEXTS = ("key", "prompt")
"""Texts that every record has besides its arrays."""

_NAME = "latents"
_VERSION = "1.0.0"
_ARRAYS = "arrays.json"
_NULL = "null_text.npz"


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array that every record has.

    Attributes:
      shape: its dimensions; "H" and "W" are the rows and columns of the record's bucket.
      dtype: float32 or float16, on disk.

    Raises:
      UserError: a dimension is a string other than "H" and "W".
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for size in self.shape:
            if isinstance(size, str) and size not in ("H", "W"):
                raise UserError(
                    f"an array's shape {self.shape} names {size!r}: use whole numbers, and 'H' and "
                    f"'W' for the sides of the bucket"
                )

    def shape_in(self, bucket: Bucket) -> tuple[int, ...]:
        """The dimensions in one bucket."""
        sides = {"H": bucket.height, "W": bucket.width}
        return tuple(sides[size] if isinstance(size, str) else size for size in self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set of shards will hold, known before the first record.

    Attributes:
      sizes: records in each bucket.
      records_per_shard: records in every file but the last of a bucket.
      arrays: arrays of every record, by name. `latents` may be left out: prompts alone. All others
        are the record's cond.

    Raises:
      UserError: an array has the name of a record's text, `key` or `prompt`.
    """

    sizes: Mapping[Bucket, int]
    records_per_shard: int
    arrays: Mapping[str, ArraySpec]

    def __post_init__(self) -> None:
        for name in _TEXTS:
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
        """The record of a bucket."""
        arrays = {
            name: tfds.features.Tensor(shape=spec.shape_in(bucket), dtype=np.dtype(spec.dtype).type)
            for name, spec in self.arrays.items()
        }
        texts = {name: tfds.features.Text() for name in _TEXTS}
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
        """Where the file lies."""
        split = f"b{self.bucket.name}"
        name = f"{_NAME}-{split}.array_record-{self.index:05d}-of-{self.count:05d}"
        return _bucket_directory(directory, self.bucket) / name


def _bucket_directory(directory: str | Path, bucket: Bucket) -> Path:
    # Each bucket is a dataset of its own, since tfds has one record shape for all of its splits.
    return Path(directory) / bucket.name / _VERSION


def missing_shards(
    directory: str | Path, layout: Layout, process_index: int = 0, process_count: int = 1
) -> list[Shard]:
    """The shards still to be written by one of several processes.

    Each has every `process_count`th shard of the whole set, so that two never write the same one
    whatever they have found written already.
    """
    own = list(layout.shards())[process_index::process_count]
    return [shard for shard in own if not shard.path(directory).exists()]


def write_shard(
    directory: str | Path, layout: Layout, shard: Shard, records: Iterable[Mapping[str, Any]]
) -> None:
    """Writes one shard under its final name, or nothing.

    Args:
      directory: folder of the whole set.
      layout: layout of the whole set.
      shard: the shard to write.
      records: `latents` (if any), `cond` (arrays by name) and `prompt` of records `start` to
        `stop`, in order.

    Raises:
      UserError: another number of records, or one of another shape.
    """
    path = shard.path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = layout.features(shard.bucket)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    count = 0
    # A group of one record makes every record readable on its own.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for record in records:
            key = f"{shard.bucket.name}/{shard.start + count}"
            given = dict(record["cond"])
            if LATENTS in record:
                given[LATENTS] = record[LATENTS]
            arrays = {name: np.asarray(given[name], s.dtype) for name, s in layout.arrays.items()}
            example = features.encode_example({**arrays, "key": key, "prompt": record["prompt"]})
            writer.write(features.serialize_example(example))
            count += 1
        writer.close()
        if count != shard.stop - shard.start:
            raise UserError(
                f"shard {path.name} was given {count} records and holds {shard.stop - shard.start}"
            )
        os.replace(partial, path)
    finally:
        if writer.is_open():
            writer.close()
        partial.unlink(missing_ok=True)


def finalize(directory: str | Path, layout: Layout, null: Mapping[str, np.ndarray]) -> None:
    """Marks the set complete: writes the tfds metadata, the arrays' names and the empty prompt.

    Args:
      directory: folder of the set.
      layout: layout of the set.
      null: arrays of the empty prompt, for classifier-free guidance, without the records'
        dimension. A name that is not there stays as in the record.

    Raises:
      NotFoundError: a shard is missing.
    """
    missing = missing_shards(directory, layout)
    if missing:
        raise NotFoundError(
            f"{len(missing)} shards are missing in {directory}, the first is "
            f"{missing[0].path(directory).name}: write them before finalizing"
        )
    for bucket in layout.sizes:
        folder = _bucket_directory(directory, bucket)
        shards = [shard for shard in layout.shards() if shard.bucket == bucket]
        split = tfds.core.SplitInfo(
            name=f"b{bucket.name}",
            shard_lengths=[shard.stop - shard.start for shard in shards],
            num_bytes=sum(shard.path(directory).stat().st_size for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name=_NAME,
                data_dir=folder,
                filetype_suffix="array_record",
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            ),
        )
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder),
            features=layout.features(bucket),
            split_infos=[split],
            version=_VERSION,
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,
        )
    arrays = {name: dataclasses.asdict(spec) for name, spec in layout.arrays.items()}
    write_whole(Path(directory) / _ARRAYS, lambda file: file.write(json.dumps(arrays).encode()))
    # The last file to appear: where it is, the set is complete.
    write_whole(Path(directory) / _NULL, lambda file: np.savez(file, allow_pickle=False, **null))


def finalize_together(
    directory: str | Path, layout: Layout, null: Mapping[str, np.ndarray]
) -> None:
    """`finalize` by the first process once all processes have come here; returns when it is done.

    The arguments are those of `finalize`.
    """
    barrier(f"written {directory}")
    if jax.process_index() == 0:
        finalize(directory, layout, null)
    barrier(f"finalized {directory}")


def progress(name: str, layout: Layout, missing: Sequence[Shard]) -> tqdm:
    """A bar over this process's records, with those that are written already as its start."""
    share = list(layout.shards())[jax.process_index() :: jax.process_count()]
    total = sum(shard.stop - shard.start for shard in share)
    done = total - sum(shard.stop - shard.start for shard in missing)
    hidden = jax.process_index() != 0
    return tqdm(total=total, initial=done, desc=name, unit="img", disable=hidden)


def is_complete(directory: str | Path) -> bool:
    """Whether a set was finalized."""
    return (Path(directory) / _NULL).exists()


def _check_files(directory: Path, split: tfds.core.SplitInfo) -> None:
    """Raises UserError where the files are not those that were finalized, by name and size."""
    found = 0
    for path in split.filepaths:
        if not Path(path).exists():
            raise UserError(
                f"{Path(path).name} is missing in {directory}: remove that directory and run the "
                f"stage that writes it (encode or synthesize) again"
            )
        found += Path(path).stat().st_size
    if found != split.num_bytes:
        raise UserError(
            f"the files of {split.name} in {directory} hold {found} bytes and were written with "
            f"{split.num_bytes}: remove that directory and run the stage that writes it (encode "
            f"or synthesize) again"
        )


class Shards:
    """A complete set of shards, read at random.

    Attributes:
      sizes: records in each bucket.
      arrays: arrays of every record, by name.
      null: float32 arrays of the empty prompt, by name.

    Raises:
      NotFoundError: the set was not finalized.
      UserError: a file is missing or was cut.
    """

    def __init__(self, directory: str | Path):
        self.directory = directory = Path(directory)
        if not is_complete(directory):
            raise NotFoundError(
                f"no complete latent shards in {directory}: run the command that writes them, "
                f"`python -m ladd_jax.encode` or, for the data generator's samples, "
                f"`python -m ladd_jax.synthesize`, which goes on where it was stopped"
            )
        self._sources: dict[Bucket, Any] = {}
        for folder in sorted(directory.iterdir()):
            if folder.is_dir():
                bucket = Bucket.parse(folder.name)
                split = f"b{bucket.name}"
                builder = tfds.builder_from_directory(str(folder / _VERSION))
                _check_files(directory, builder.info.splits[split])
                self._sources[bucket] = builder.as_data_source(split)
        self.sizes = {bucket: len(source) for bucket, source in self._sources.items()}
        declared = json.loads((directory / _ARRAYS).read_text())
        self.arrays = {
            name: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for name, spec in declared.items()
        }
        with np.load(directory / _NULL) as null:
            self.null = {name: array.astype(np.float32) for name, array in null.items()}

    @property
    def cond_arrays(self) -> dict[str, ArraySpec]:
        """All arrays but the latents."""
        return {name: spec for name, spec in self.arrays.items() if name != LATENTS}

    @property
    def has_latents(self) -> bool:
        """Whether there are latents besides the prompts."""
        return LATENTS in self.arrays

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """In order of height, then width."""
        return tuple(sorted(self.sizes))

    def batch_shapes(self, batch_size: int) -> dict[Bucket, dict[str, Any]]:
        """Batches of each bucket as `jax.ShapeDtypeStruct`, float32: `latents` and `cond`."""
        return {
            bucket: self._nested(
                {
                    name: jax.ShapeDtypeStruct((batch_size, *spec.shape_in(bucket)), np.float32)
                    for name, spec in self.arrays.items()
                }
            )
            for bucket in self.buckets
        }

    def read(self, bucket: Bucket, indices: np.ndarray) -> dict[str, Any]:
        """Records of a bucket.

        Returns:
          float32 `latents [n, H, W, C]` (where there are any), `cond` with arrays `[n, ...]`, and
          lists of str `prompt` and `key`.
        """
        records = self._sources[bucket].__getitems__([int(i) for i in indices])
        arrays = {
            name: np.stack([record[name] for record in records]).astype(np.float32)
            for name in self.arrays
        }
        texts = {name: [record[name].decode() for record in records] for name in ("prompt", "key")}
        return self._nested(arrays) | texts

    def _nested(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Latents, and all others under `cond`."""
        cond = {name: array for name, array in arrays.items() if name != LATENTS}
        return {name: arrays[name] for name in (LATENTS,) if name in arrays} | {"cond": cond}

"""Latent shards: a tensorflow-datasets folder of ArrayRecord files, one split for each bucket.

The names of all files follow from the layout alone, each file appears whole or not at all, and the
metadata come last. So a writer can be stopped at any moment and started again, by another number
of hosts too, and every record is written once.

H W latent grid, C channels.
"""

import contextlib
import copy
import dataclasses
import json
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from ladd_jax.data import archives
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.buffers import Buffers
from ladd_jax.data.direct import TEXTS, DirectFiles, indexed
from ladd_jax.data.shard_files import check_values, count_records
from ladd_jax.errors import DamagedError, NotFoundError, UserError, brief
from ladd_jax.parallel.processes import barrier
from ladd_jax.whole_files import publish, read_json, write_text_whole, write_whole

_LOG = getLogger(__name__)

LATENTS = "latents"
"""Name of the array that is noised; all other arrays of a record are its cond."""

_NAME = "latents"
_VERSION = "2.0.0"
_VERSIONS = (_VERSION, "1.0.0")
"""Those that are read; 1.0.0 has lists of numbers in the place of bytes."""

_ARRAYS = "arrays.json"
_NULL = "null_text.npz"
_IDENTITY = "identity.json"
_TEXT = "text.json"


@dataclasses.dataclass(frozen=True)
class Text:
    """Where a set has its cond from: the record at a place that of the same place in another set.

    Attributes:
      set: name of the other set's folder, beside this one's.
      sizes: its records of each bucket; places beyond them count again from the start. Records that
        are added to it later change nothing.
    """

    set: str
    sizes: Mapping[Bucket, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set of shards will hold, known before the first record.

    Attributes:
      sizes: records in each bucket.
      records_per_shard: records in every file but the last of a bucket.
      arrays: arrays of every record, by name. `latents` may be left out: prompts alone. All others
        are the record's cond.
      text: where the cond of all records is; None: in the arrays.

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
        """The record of a bucket."""
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
        """Where the file lies."""
        split = f"b{self.bucket.name}"
        name = f"{_NAME}-{split}.array_record-{self.index:05d}-of-{self.count:05d}"
        return _bucket_directory(directory, self.bucket) / name


def _version(folder: Path) -> Path:
    """The newest version of a bucket's files that is there, or where it would be."""
    return next(
        (folder / name for name in _VERSIONS if (folder / name).is_dir()), folder / _VERSION
    )


def _bucket_directory(directory: str | Path, bucket: Bucket) -> Path:
    # Each bucket is a dataset of its own, since tfds has one record shape for all of its splits.
    return Path(directory) / bucket.name / _VERSION


def shard_files(directory: Path) -> list[tuple[Path, Bucket, int]]:
    """The files of shards that are there, whole or not, each with its bucket and number."""
    found = []
    for file in sorted(directory.glob(f"*/{_VERSION}/{_NAME}-b*.array_record-*-of-*")):
        name = file.parent.parent.name
        index = file.name.partition(".array_record-")[2].partition("-of-")[0]
        if Bucket.is_name(name) and index.isdecimal():
            found.append((file, Bucket.parse(name), int(index)))
    return found


def missing_shards(
    directory: str | Path, layout: Layout, process_index: int = 0, process_count: int = 1
) -> list[Shard]:
    """The shards still to be written by one of several processes: those that are damaged too.

    Each has every `process_count`th shard of the whole set, so that two never write the same one
    whatever they have found written already.
    """
    own = list(layout.shards())[process_index::process_count]
    return [shard for shard in own if not _is_whole(directory, shard)]


def _is_whole(directory: str | Path, shard: Shard) -> bool:
    path = shard.path(directory)
    return path.is_file() and count_records(path) == shard.stop - shard.start


def write_shard(
    directory: str | Path, layout: Layout, shard: Shard, records: Iterable[Mapping[str, Any]]
) -> None:
    """Writes one shard under its final name, or nothing.

    Args:
      directory: folder of the whole set.
      layout: layout of the whole set.
      shard: the shard to write.
      records: `latents` (if any), `cond` (arrays by name, of which only those of the layout are
        written) and `prompt` of records `start` to `stop`, in order.

    Raises:
      UserError: another number of records, or one of another shape; or a value that is not finite,
        overflows the dtype that is stored or is absurd. The record is named.
    """
    path = shard.path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = layout.features(shard.bucket)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    count = 0
    # A group of one record makes every record readable on its own. Compression would find little
    # in numbers of networks, and reading would take ten times as long.
    writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    try:
        for record in records:
            key = f"{shard.bucket.name}/{shard.start + count}"
            given = dict(record["cond"])
            if LATENTS in record:
                given[LATENTS] = record[LATENTS]
            # An overflow is found below, with the record's name.
            with np.errstate(over="ignore"):
                arrays = {name: spec.as_given(given[name]) for name, spec in layout.arrays.items()}
            check_values(arrays, key, record["prompt"])
            packed: dict[str, Any] = {"key": key, "prompt": record["prompt"]}
            for name, spec in layout.arrays.items():
                packed |= spec.pack(name, arrays[name])
            writer.write(indexed(features.serialize_example(packed)))
            count += 1
        writer.close()
        if count != shard.stop - shard.start:
            raise UserError(
                f"shard {path.name} was given {count} records and holds {shard.stop - shard.start}"
            )
        publish(partial, path)
    # Its only type, of a disk that is full or read-only.
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be written ({brief(error)}): free space there, or let it "
            f"be written, and start the command again, which goes on from here"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
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
      NotFoundError: a shard is missing, or holds another number of records.
      UserError: a value of `null` is not finite or absurd.
    """
    check_values({name: np.asarray(array) for name, array in null.items()}, _NULL, "")
    missing = missing_shards(directory, layout)
    if missing:
        raise NotFoundError(
            f"{len(missing)} shards are missing or damaged in {directory}, the first is "
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
    write_text_whole(Path(directory) / _ARRAYS, json.dumps(arrays))
    if layout.text is not None:
        sizes = {bucket.name: size for bucket, size in layout.text.sizes.items()}
        named = {"set": layout.text.set, "sizes": sizes}
        write_text_whole(Path(directory) / _TEXT, json.dumps(named))
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


def reopen(directory: str | Path) -> None:
    """Marks a set as not complete, so that it can be written on."""
    (Path(directory) / _NULL).unlink(missing_ok=True)


def is_complete(directory: str | Path) -> bool:
    """Whether a set was finalized."""
    return (Path(directory) / _NULL).exists()


def check_complete(directory: str | Path) -> None:
    """Raises NotFoundError where a set was not finalized."""
    if not is_complete(directory):
        raise NotFoundError(
            f"no complete latent shards in {directory}: run the command that writes them, "
            f"`python -m ladd_jax.encode` or, for the data generator's samples, "
            f"`python -m ladd_jax.synthesize`, which goes on where it was stopped"
        )


def write_identity(directory: str | Path, identity: Mapping[str, Any]) -> None:
    """Says what a set is made of, before the first of its shards is written.

    Args:
      directory: folder of the set; made if it is not there.
      identity: for `read_identity`, as JSON.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_text_whole(Path(directory) / _IDENTITY, json.dumps(identity, indent=2) + "\n")


def read_identity(directory: str | Path) -> dict[str, Any]:
    """What a set was made of, as `write_identity` was told; empty for sets of older versions.

    Raises:
      DamagedError: the file that says it is damaged.
    """
    path = Path(directory) / _IDENTITY
    return read_json(path, _AGAIN) if path.exists() else {}


_AGAIN = (
    "remove that directory and run the stage that writes it (encode or synthesize) again, or put a "
    "copy of it there"
)


def _check_files(directory: Path, split: tfds.core.SplitInfo, files: Sequence[Path]) -> None:
    """Raises DamagedError where the files are not those that were finalized, by name and size."""
    found = 0
    for path in files:
        if not path.exists():
            raise DamagedError(f"{path.name} is missing in {directory}: {_AGAIN}")
        found += path.stat().st_size
    if found != split.num_bytes:
        raise DamagedError(
            f"the files of {split.name} in {directory} hold {found} bytes and were written with "
            f"{split.num_bytes}: {_AGAIN}"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of several records, in the form in which it is stored; a tree of `parts`.

    Attributes:
      parts: what is stored of it, `[n, ...]`, by the names in the records.
      name: its name.
      spec: the array of one record.
    """

    parts: dict[str, Any]
    name: str = dataclasses.field(metadata={"static": True})
    spec: ArraySpec = dataclasses.field(metadata={"static": True})

    def widen(self, xp: Any = np) -> Any:
        """The array itself, float32 `[n, ...]`, by `numpy` or `jax.numpy`."""
        return self.spec.widen(self.name, self.parts, xp)


class Shards:
    """A complete set of shards, read at random.

    Attributes:
      sizes: records in each bucket.
      arrays: arrays of every record, by name.
      text: the set that the cond of the records is read from; None where they have their own.
      null: float32 arrays of the empty prompt, by name.
      skipped: records that could not be read so far, with the reason, by bucket and place.
    """

    def __init__(self, directory: str | Path, most_skipped: tuple[float, int] = (0.0, 0)):
        """Opens a set.

        Args:
          directory: folder of the set.
          most_skipped: share and number of records that may be damaged: the larger of both. In the
            place of each the next one that can be read is given.

        Raises:
          NotFoundError: the set was not finalized.
          DamagedError: a file is missing, was cut or is of another set; or the set that the text
            is in does not fit.
        """
        self.directory = directory = Path(directory)
        check_complete(directory)
        self._sources: dict[Bucket, Any] = {}
        builders: dict[Bucket, Any] = {}
        self._files: dict[Bucket, tuple[list[str], np.ndarray]] = {}
        for folder in sorted(directory.iterdir()):
            # Disks and notebooks leave folders of their own, such as lost+found.
            if not folder.is_dir() or not Bucket.is_name(folder.name):
                continue
            bucket = Bucket.parse(folder.name)
            split = f"b{bucket.name}"
            try:
                builder = tfds.builder_from_directory(str(_version(folder)))
                info = builder.info.splits[split]
                files = list(map(Path, info.filepaths))
            # It reads JSON without a word of what is wrong with it.
            except Exception as error:
                if isinstance(error, PermissionError):
                    raise
                raise DamagedError(
                    f"the metadata of {_version(folder)} are damaged or missing: {_AGAIN}"
                ) from error
            _check_files(directory, info, files)
            self._files[bucket] = list(map(str, info.filepaths)), np.cumsum(info.shard_lengths)
            self._sources[bucket] = builder.as_data_source(split)
            builders[bucket] = builder
        self.sizes = {bucket: len(source) for bucket, source in self._sources.items()}
        if not self.sizes:
            raise DamagedError(f"{directory} holds no bucket: {_AGAIN}")
        self.arrays = _read_arrays(directory / _ARRAYS)
        for bucket, builder in builders.items():
            self._check_features(bucket, builder.info.features)
        self._own_parts = self._parts()
        self._text_sizes: dict[Bucket, int] = {}
        self.text = self._open_text()
        if self.text is not None:
            self.arrays |= self.text.cond_arrays
        self._direct, self._buffers = DirectFiles(), Buffers()
        self.null = _read_null(directory / _NULL, self.arrays)
        total = sum(self.sizes.values())
        self._most_skipped = max(int(most_skipped[0] * total + 1e-9), most_skipped[1])
        self.skipped: dict[tuple[Bucket, int], str] = {}
        # Several threads read.
        self._lock = threading.Lock()

    def _parts(self) -> dict[Bucket, set[str]]:
        """Names of all that is stored of the arrays."""
        return {
            bucket: {
                part for name, spec in self.arrays.items() for part in spec.parts(name, bucket)
            }
            for bucket in self.sizes
        }

    def _open_text(self) -> "Shards | None":
        named = self.directory / _TEXT
        if not named.exists():
            return None
        found = read_json(named, _AGAIN)
        name, sizes = found.get("set"), found.get("sizes")
        if not isinstance(name, str) or not isinstance(sizes, dict):
            raise DamagedError(f"{named} is damaged (it names no set with its sizes): {_AGAIN}")
        other = self.directory.parent / name
        # One that has its text elsewhere could lead back here.
        if (other / _TEXT).exists():
            raise DamagedError(f"{named} names {other}, which has no text of its own: {_AGAIN}")
        text = Shards(other)
        for bucket in self.sizes:
            size = sizes.get(bucket.name, 0)
            if type(size) is not int or not 0 < size <= text.sizes.get(bucket, 0):
                raise DamagedError(
                    f"{text.directory} has the text of {self.directory} and "
                    f"{text.sizes.get(bucket, 0)} records of bucket {bucket.name}, which were "
                    f"{size}: put the set there that it was made of"
                )
            self._text_sizes[bucket] = size
        return text

    def _check_features(self, bucket: Bucket, stored: Any) -> None:
        """Raises DamagedError where the records of a bucket do not have the arrays."""
        for name, spec in self.arrays.items():
            for part, wanted in spec.features(name, bucket).items():
                given = (wanted.shape, wanted.np_dtype)
                if part not in stored or (stored[part].shape, stored[part].np_dtype) != given:
                    raise DamagedError(
                        f"{self.directory / _ARRAYS} has {part} of shape {wanted.shape} and the "
                        f"records of bucket {bucket.name} do not: {_AGAIN}"
                    )

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

    def without(self, names: Collection[str]) -> "Shards":
        """The same records without some of their arrays, which are not read."""
        found = copy.copy(self)
        found.arrays = {name: spec for name, spec in self.arrays.items() if name not in names}
        return found

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

        Raises:
          DamagedError: a record cannot be read, or is another one than the set has at its place,
            and no more may be skipped. Its file is named.
        """
        arrays, texts = self._read(bucket, indices)
        return self._nested({name: array.widen() for name, array in arrays.items()}) | texts

    def read_stored(self, bucket: Bucket, indices: np.ndarray) -> dict[str, Any]:
        """As `read`, without texts, in the form in which the arrays are stored.

        Returns:
          `latents` and `cond` with arrays, each as a `Stored`; or float32 `[n, ...]` where that is
          how it is stored. `places`, int64 `[n]`: where the records are, which others may stand for
          that cannot be read.
        """
        arrays, texts = self._read(bucket, indices)
        places = np.array([int(key.rpartition("/")[2]) for key in texts["key"]], np.int64)
        found = {name: a.widen() if a.spec.is_plain else a for name, a in arrays.items()}
        return self._nested(found) | {"places": places}

    def _read(
        self, bucket: Bucket, indices: np.ndarray
    ) -> tuple[dict[str, Stored], dict[str, list[str]]]:
        arrays = {
            name: Stored(
                {
                    part: self._buffers.empty((len(indices), *shape), dtype)
                    for part, (shape, dtype) in spec.parts(name, bucket).items()
                },
                name,
                spec,
            )
            for name, spec in self.arrays.items()
        }
        parts = {part: array for found in arrays.values() for part, array in found.parts.items()}
        texts: dict[str, list[str]] = {"prompt": [], "key": []}
        for row, index in enumerate(indices):
            rows = {part: array[row, ...] for part, array in parts.items()}
            for name, text in self._readable(bucket, int(index), rows).items():
                texts[name].append(text)
        return arrays, texts

    def _at(self, bucket: Bucket, place: int, rows: dict[str, np.ndarray]) -> dict[str, str]:
        """Reads the record at a place into rows, its text too; any error where one is damaged.

        Args:
          bucket: the record's bucket.
          place: its place there.
          rows: what is stored of its arrays, by the names in the record.

        Returns:
          its texts.
        """
        own = self._own_parts[bucket]
        found = self._record(bucket, place, {part: rows[part] for part in own & rows.keys()})
        if found["key"] != f"{bucket.name}/{place}":
            raise DamagedError("it is of another place")
        if self.text is None:
            return found
        others = {part: row for part, row in rows.items() if part not in own}
        prompt = self._text_at(bucket, place % self._text_sizes[bucket], others)
        if prompt != found["prompt"]:
            raise DamagedError(
                f"its text in {self.text.directory} is of the prompt {prompt[:60]!r} and not "
                f"{found['prompt'][:60]!r}"
            )
        return found

    def _record(self, bucket: Bucket, place: int, rows: dict[str, np.ndarray]) -> dict[str, str]:
        """Reads a record into rows, directly where it can be, and gives its texts."""
        file, number, count = self._file(bucket, place)
        found = self._direct.read(file, number, count, self._own_parts[bucket], rows)
        if found is not None:
            return found
        # Older files, and what is damaged, which the library names.
        record = self._sources[bucket][place]
        for name, row in rows.items():
            row[...] = record[name]
        return {name: record[name].decode() for name in TEXTS}

    def _text_at(self, bucket: Bucket, place: int, rows: dict[str, np.ndarray]) -> str:
        """Reads the text of a record into rows, and gives its prompt."""
        assert self.text is not None
        try:
            return self.text._at(bucket, place, rows)["prompt"]
        except Exception as error:
            file, *_ = self.text._file(bucket, place)
            raise DamagedError(f"its text in {file}: {brief(error)}") from error

    def _readable(self, bucket: Bucket, index: int, rows: dict[str, np.ndarray]) -> dict[str, str]:
        """Reads the record, or the next one that can be read where it may be skipped."""
        for place in range(index, index + self.sizes[bucket]):
            place %= self.sizes[bucket]
            reason = self.skipped.get((bucket, place))
            if reason is None:
                try:
                    return self._at(bucket, place, rows)
                # Of files that are damaged or of another bucket: each library has its own errors.
                except Exception as error:
                    reason = brief(error)[:200]
                self._skip(bucket, place, reason)
        raise DamagedError(f"no record of bucket {bucket.name} in {self.directory} can be read")

    def _skip(self, bucket: Bucket, place: int, reason: str) -> None:
        """Counts a record that cannot be read, or refuses it."""
        file, *_ = self._file(bucket, place)
        with self._lock:
            self.skipped[bucket, place] = reason
            count = len(self.skipped)
        if count > self._most_skipped:
            allowed = f" and the limit is {self._most_skipped}" if self._most_skipped else ""
            raise DamagedError(
                f"record {bucket.name}/{place} of {file} cannot be read ({reason.rstrip('.')}); "
                f"{count} cannot so far{allowed}: remove the file and run the stage that writes it "
                f"(encode or synthesize) again, put a copy of it there, or set "
                f"data.on_corrupt='skip', which leaves out up to data.max_unreadable"
            )
        _LOG.warning(
            "record %s/%d of %s cannot be read (%s): another one is read in its place, %d so far",
            bucket.name, place, file, reason, count,
        )  # fmt: skip

    def _file(self, bucket: Bucket, place: int) -> tuple[str, int, int]:
        """The file of a record, its number there, and the number of records there."""
        paths, stops = self._files[bucket]
        file = int(np.searchsorted(stops, place, side="right"))
        start = int(stops[file - 1]) if file else 0
        return paths[file], place - start, int(stops[file]) - start

    def _nested(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Latents, and all others under `cond`."""
        cond = {name: array for name, array in arrays.items() if name != LATENTS}
        return {name: arrays[name] for name in (LATENTS,) if name in arrays} | {"cond": cond}


def _read_arrays(path: Path) -> dict[str, ArraySpec]:
    """The arrays of the records by name."""
    try:
        return {name: ArraySpec.from_dict(spec) for name, spec in read_json(path, _AGAIN).items()}
    except DamagedError:
        raise
    except UserError as error:
        raise DamagedError(f"{path} is damaged ({error}): {_AGAIN}") from error


def _read_null(path: Path, arrays: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """The arrays of the empty prompt, which are of the records' shapes."""
    found = archives.read(path, _AGAIN)
    for name, array in found.items():
        if name not in arrays or array.shape != arrays[name].shape or array.dtype.kind not in "fiu":
            wanted = f"of shape {arrays[name].shape}" if name in arrays else "without it"
            raise DamagedError(
                f"{path} has {name} of shape {array.shape} and {array.dtype}, and the records are "
                f"{wanted}: {_AGAIN}"
            )
    return {name: array.astype(np.float32) for name, array in found.items()}

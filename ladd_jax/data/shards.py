"""Reads latent shards; `shard_sets` describes them.

H W latent grid, C channels.
"""

import copy
import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from ladd_jax.data import archives
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.buffers import Buffers
from ladd_jax.data.direct import TEXTS, DirectFiles
from ladd_jax.data.shard_files import check_values, fingerprint
from ladd_jax.data.shard_sets import (
    AGAIN,
    ARRAYS,
    FINGERPRINTS,
    LATENTS,
    NULL,
    TEXT,
    check_complete,
    version_folder,
)
from ladd_jax.errors import DamagedError, UserError, brief
from ladd_jax.whole_files import read_json

_LOG = getLogger(__name__)


def _check_files(directory: Path, split: tfds.core.SplitInfo, files: Sequence[Path]) -> None:
    """Raises DamagedError where files do not have the names and the size that were finalized."""
    found = 0
    for path in files:
        if not path.exists():
            raise DamagedError(f"{path.name} is missing in {directory}: {AGAIN}")
        found += path.stat().st_size
    if found != split.num_bytes:
        raise DamagedError(
            f"the files of {split.name} in {directory} hold {found} bytes and were written with "
            f"{split.num_bytes}: {AGAIN}"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of several records in the form in which it is stored; a pytree with leaves `parts`.

    Attributes:
      parts: what is stored for the array, `[n, ...]`, by the names in the records.
      name: name of the array.
      spec: how the array of one record is stored.
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
      sizes: number of records in each bucket.
      arrays: arrays of every record, by name.
      text: the set from which the cond of the records is read; None if they have their own.
      null: float32 arrays of the empty prompt, by name.
      skipped: reasons why records could not be read so far, by bucket and place.
    """

    def __init__(self, directory: str | Path, most_skipped: tuple[float, int] = (0.0, 0)):
        """Opens a set.

        Args:
          directory: folder of the set.
          most_skipped: share and number of records that may be damaged; the larger limit counts.
            Instead of a damaged record the next one that can be read is returned.

        Raises:
          NotFoundError: the set was not finalized.
          DamagedError: a file is missing, was cut or belongs to another set; or the set with the
            text does not fit.
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
                builder = tfds.builder_from_directory(str(version_folder(folder)))
                info = builder.info.splits[split]
                files = list(map(Path, info.filepaths))
            # Damaged JSON makes the library raise errors of any type.
            except Exception as error:
                if isinstance(error, PermissionError):
                    raise
                raise DamagedError(
                    f"the metadata of {version_folder(folder)} are damaged or missing: {AGAIN}"
                ) from error
            _check_files(directory, info, files)
            self._files[bucket] = list(map(str, info.filepaths)), np.cumsum(info.shard_lengths)
            self._sources[bucket] = builder.as_data_source(split)
            builders[bucket] = builder
        self.sizes = {bucket: len(source) for bucket, source in self._sources.items()}
        if not self.sizes:
            raise DamagedError(f"{directory} holds no bucket: {AGAIN}")
        self.arrays = _read_arrays(directory / ARRAYS)
        for bucket, builder in builders.items():
            self._check_features(bucket, builder.info.features)
        # Compared when a file is first read: to open all of them takes long on a pod's storage.
        self._fingerprints = _read_fingerprints(directory / FINGERPRINTS)
        self._compared: set[str] = set()
        self._own_parts = self._parts()
        self._text_sizes: dict[Bucket, int] = {}
        self.text = self._open_text()
        if self.text is not None:
            self.arrays |= self.text.cond_arrays
        self._direct, self._buffers = DirectFiles(), Buffers()
        self.null = _read_null(directory / NULL, self.arrays)
        total = sum(self.sizes.values())
        self._most_skipped = max(int(most_skipped[0] * total + 1e-9), most_skipped[1])
        self.skipped: dict[tuple[Bucket, int], str] = {}
        # Several threads read.
        self._lock = threading.Lock()

    def _parts(self) -> dict[Bucket, set[str]]:
        """Names, in the records of each bucket, of everything that is stored for the arrays."""
        return {
            bucket: {
                part for name, spec in self.arrays.items() for part in spec.parts(name, bucket)
            }
            for bucket in self.sizes
        }

    def _open_text(self) -> "Shards | None":
        named = self.directory / TEXT
        if not named.exists():
            return None
        found = read_json(named, AGAIN)
        name, sizes = found.get("set"), found.get("sizes")
        if not isinstance(name, str) or not isinstance(sizes, dict):
            raise DamagedError(f"{named} is damaged (it names no set with its sizes): {AGAIN}")
        other = self.directory.parent / name
        # A set whose text is elsewhere could lead back to this one.
        if (other / TEXT).exists():
            raise DamagedError(f"{named} names {other}, which has no text of its own: {AGAIN}")
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
                        f"{self.directory / ARRAYS} has {part} of shape {wanted.shape} and the "
                        f"records of bucket {bucket.name} do not: {AGAIN}"
                    )

    @property
    def cond_arrays(self) -> dict[str, ArraySpec]:
        """All arrays except the latents."""
        return {name: spec for name, spec in self.arrays.items() if name != LATENTS}

    @property
    def has_latents(self) -> bool:
        """Whether records have latents besides their prompts."""
        return LATENTS in self.arrays

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets, in order of height, then width."""
        return tuple(sorted(self.sizes))

    def without(self, names: Collection[str]) -> "Shards":
        """The same records without some of their arrays, which are not read."""
        found = copy.copy(self)
        found.arrays = {name: spec for name, spec in self.arrays.items() if name not in names}
        return found

    def batch_shapes(self, batch_size: int) -> dict[Bucket, dict[str, Any]]:
        """Shapes of each bucket's batches, `latents` and `cond`, as float32 `ShapeDtypeStruct`."""
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
          DamagedError: a record cannot be read, or is not the one that the set has at its place,
            and no more may be skipped. Its file is named.
        """
        arrays, texts = self._read(bucket, indices)
        return self._nested({name: array.widen() for name, array in arrays.items()}) | texts

    def read_stored(self, bucket: Bucket, indices: np.ndarray) -> dict[str, Any]:
        """As `read`, without texts, in the form in which the arrays are stored.

        Returns:
          `latents` and `cond` with arrays, each as a `Stored`, or as float32 `[n, ...]` if it is
          stored that way. `places`, int64 `[n]`: places of the records, which differ from `indices`
          where another record is read instead of one that cannot be.
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
        """Reads the record at a place into rows, with its text; damage may raise any error.

        Args:
          bucket: the record's bucket.
          place: the record's place in the bucket.
          rows: arrays to fill with what is stored, by the names in the record.

        Returns:
          The record's `TEXTS`.
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
        """Reads a record into rows, directly if possible, and returns its `TEXTS`."""
        file, number, count = self._file(bucket, place)
        self._compare(file)
        found = self._direct.read(file, number, count, self._own_parts[bucket], rows)
        if found is not None:
            return found
        # Older files, and damaged ones, for which the library says what is wrong.
        record = self._sources[bucket][place]
        for name, row in rows.items():
            row[...] = record[name]
        return {name: record[name].decode() for name in TEXTS}

    def _compare(self, file: str) -> None:
        """Raises DamagedError where a file is not the one that was finalized."""
        if file in self._compared:
            return
        path = Path(file)
        # Sets of older versions have no fingerprints.
        wanted = self._fingerprints.get(path.name)
        if wanted is not None and wanted != fingerprint(path):
            raise DamagedError("the file is of another set")
        self._compared.add(file)

    def _text_at(self, bucket: Bucket, place: int, rows: dict[str, np.ndarray]) -> str:
        """Reads the text of a record into rows, and returns its prompt."""
        assert self.text is not None
        try:
            return self.text._at(bucket, place, rows)["prompt"]
        except Exception as error:
            file, *_ = self.text._file(bucket, place)
            raise DamagedError(f"its text in {file}: {brief(error)}") from error

    def _readable(self, bucket: Bucket, index: int, rows: dict[str, np.ndarray]) -> dict[str, str]:
        """Reads the record, or, if it is damaged and may be skipped, the next that can be read."""
        for place in range(index, index + self.sizes[bucket]):
            place %= self.sizes[bucket]
            reason = self.skipped.get((bucket, place))
            if reason is None:
                try:
                    return self._at(bucket, place, rows)
                # The file is damaged or of another bucket, and each library has its own errors.
                except Exception as error:
                    reason = brief(error)[:200]
                self._skip(bucket, place, reason)
        raise DamagedError(f"no record of bucket {bucket.name} in {self.directory} can be read")

    def _skip(self, bucket: Bucket, place: int, reason: str) -> None:
        """Counts a record that cannot be read; raises DamagedError above the limit."""
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
            "record %s/%d of %s cannot be read (%s): another one is read instead, %d so far",
            bucket.name, place, file, reason, count,
        )  # fmt: skip

    def _file(self, bucket: Bucket, place: int) -> tuple[str, int, int]:
        """The file of a record, the record's number in it, and the file's number of records."""
        paths, stops = self._files[bucket]
        file = int(np.searchsorted(stops, place, side="right"))
        start = int(stops[file - 1]) if file else 0
        return paths[file], place - start, int(stops[file]) - start

    def _nested(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arrays with all but the latents under `cond`."""
        cond = {name: array for name, array in arrays.items() if name != LATENTS}
        return {name: arrays[name] for name in (LATENTS,) if name in arrays} | {"cond": cond}


def _read_fingerprints(path: Path) -> dict[str, Any]:
    """The fingerprints of files, by their names; empty for sets of older versions."""
    return read_json(path, AGAIN) if path.exists() else {}


def _read_arrays(path: Path) -> dict[str, ArraySpec]:
    """The arrays of the records by name."""
    try:
        return {name: ArraySpec.from_dict(spec) for name, spec in read_json(path, AGAIN).items()}
    except DamagedError:
        raise
    except UserError as error:
        raise DamagedError(f"{path} is damaged ({error}): {AGAIN}") from error


def _read_null(path: Path, arrays: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """The arrays of the empty prompt, which must have the records' shapes."""
    found = archives.read(path, AGAIN)
    for name, array in found.items():
        if name not in arrays or array.shape != arrays[name].shape or array.dtype.kind not in "fiu":
            wanted = f"of shape {arrays[name].shape}" if name in arrays else "without it"
            raise DamagedError(
                f"{path} has {name} of shape {array.shape} and {array.dtype}, and the records are "
                f"{wanted}: {AGAIN}"
            )
    try:
        check_values(found, path.name, "")
    except UserError as error:
        raise DamagedError(f"{path} is damaged ({error}): {AGAIN}") from error
    return {name: array.astype(np.float32) for name, array in found.items()}

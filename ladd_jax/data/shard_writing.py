"""Writes sets of latent shards.

Each file appears whole or not at all, and the metadata are written last. So a writer can be stopped
at any moment and started again, also with another number of hosts, and every record is written
once.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from ladd_jax.data import shard_sets
from ladd_jax.data.direct import indexed
from ladd_jax.data.shard_files import check_values, count_records, fingerprint
from ladd_jax.data.shard_sets import (
    ARRAYS,
    FINGERPRINTS,
    LATENTS,
    NAME,
    NULL,
    TEXT,
    Layout,
    Shard,
    bucket_directory,
)
from ladd_jax.errors import NotFoundError, UserError, brief
from ladd_jax.parallel.processes import barrier
from ladd_jax.whole_files import whole, write_text_whole, write_whole


def missing_shards(
    directory: str | Path, layout: Layout, process_index: int = 0, process_count: int = 1
) -> list[Shard]:
    """The shards that one of several processes still has to write, including damaged ones.

    Each process has every `process_count`th shard of the whole set. So two processes never write
    the same shard, whatever each has found on disk.
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
      records: records `start` to `stop`, in order, each with `latents` (if any), `cond` (arrays by
        name; only those of the layout are written) and `prompt`.

    Raises:
      UserError: the number of records or the shape of one is wrong; or a value is not finite,
        overflows the dtype on disk or is absurdly large. The record is named.
    """
    path = shard.path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = layout.features(shard.bucket)
    count = 0
    with whole(path) as partial:
        # A group of one record makes every record readable on its own. Compression would save
        # little on the outputs of networks, and reading would take ten times as long.
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for record in records:
                key = f"{shard.bucket.name}/{shard.start + count}"
                packed = _packed(record, key, layout)
                writer.write(indexed(features.serialize_example(packed)))
                count += 1
            writer.close()
        # The writer's only type of error, for a disk that is full or read-only.
        except RuntimeError as error:
            raise UserError(
                f"{path} cannot be written ({brief(error)}): free space there, or let it "
                f"be written, and start the command again, which goes on from here"
            ) from error
        finally:
            with contextlib.suppress(RuntimeError):
                if writer.is_open():
                    writer.close()
        if count != shard.stop - shard.start:
            raise UserError(
                f"shard {path.name} was given {count} records and holds {shard.stop - shard.start}"
            )


def _packed(record: Mapping[str, Any], key: str, layout: Layout) -> dict[str, Any]:
    """A record as the layout's features serialize it."""
    given = dict(record["cond"])
    if LATENTS in record:
        given[LATENTS] = record[LATENTS]
    # The check below finds an overflow, and names the record.
    with np.errstate(over="ignore"):
        arrays = {name: spec.as_given(given[name]) for name, spec in layout.arrays.items()}
    check_values(arrays, key, record["prompt"])
    packed: dict[str, Any] = {"key": key, "prompt": record["prompt"]}
    for name, spec in layout.arrays.items():
        packed |= spec.pack(name, arrays[name])
    return packed


def finalize(directory: str | Path, layout: Layout, null: Mapping[str, np.ndarray]) -> None:
    """Marks the set complete: writes the tfds metadata, the arrays' names, fingerprints of the
    files and the empty prompt.

    Args:
      directory: folder of the set.
      layout: layout of the set.
      null: arrays of the empty prompt, for classifier-free guidance, without the batch dimension.
        An array that `null` does not have stays the record's own under guidance.

    Raises:
      NotFoundError: a shard is missing, or holds a wrong number of records.
      UserError: a value of `null` is not finite, or absurdly large.
    """
    check_values({name: np.asarray(array) for name, array in null.items()}, NULL, "")
    missing = missing_shards(directory, layout)
    if missing:
        raise NotFoundError(
            f"{len(missing)} shards are missing or damaged in {directory}, the first is "
            f"{missing[0].path(directory).name}: write them before finalizing"
        )
    for bucket in layout.sizes:
        folder = bucket_directory(directory, bucket)
        shards = [shard for shard in layout.shards() if shard.bucket == bucket]
        split = tfds.core.SplitInfo(
            name=f"b{bucket.name}",
            shard_lengths=[shard.stop - shard.start for shard in shards],
            num_bytes=sum(shard.path(directory).stat().st_size for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name=NAME,
                data_dir=folder,
                filetype_suffix="array_record",
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            ),
        )
        tfds.folder_dataset.write_metadata(
            data_dir=str(folder),
            features=layout.features(bucket),
            split_infos=[split],
            version=shard_sets.VERSION,
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,
        )
    arrays = {name: dataclasses.asdict(spec) for name, spec in layout.arrays.items()}
    write_text_whole(Path(directory) / ARRAYS, json.dumps(arrays))
    if layout.text is not None:
        sizes = {bucket.name: size for bucket, size in layout.text.sizes.items()}
        named = {"set": layout.text.set, "sizes": sizes}
        write_text_whole(Path(directory) / TEXT, json.dumps(named))
    paths = [shard.path(directory) for shard in layout.shards()]
    # By file names alone, which are unique, since a set may be moved.
    fingerprints = {path.name: fingerprint(path) for path in paths}
    write_text_whole(Path(directory) / FINGERPRINTS, json.dumps(fingerprints, indent=2) + "\n")
    # The last file to be written: a set that has it is complete.
    write_whole(Path(directory) / NULL, lambda file: np.savez(file, allow_pickle=False, **null))


def finalize_together(
    directory: str | Path, layout: Layout, null: Mapping[str, np.ndarray]
) -> None:
    """Lets the first process call `finalize` once all processes are here; returns when it is done.

    The arguments are those of `finalize`.
    """
    barrier(f"written {directory}")
    if jax.process_index() == 0:
        finalize(directory, layout, null)
    barrier(f"finalized {directory}")


def progress(name: str, layout: Layout, missing: Sequence[Shard]) -> tqdm:
    """A progress bar over this process's records, which starts at those already written."""
    share = list(layout.shards())[jax.process_index() :: jax.process_count()]
    total = sum(shard.stop - shard.start for shard in share)
    done = total - sum(shard.stop - shard.start for shard in missing)
    hidden = jax.process_index() != 0
    return tqdm(total=total, initial=done, desc=name, unit="img", disable=hidden)

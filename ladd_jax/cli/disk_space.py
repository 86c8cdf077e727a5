"""Whether a run can write into its workdir, and whether what it will write fits on its disks."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.cli.disk_errors import disk_error
from ladd_jax.config.fields import Config
from ladd_jax.config.pretraining import settings_of, stage_of
from ladd_jax.config.workdir import DATA, check_directory
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import Problems, UserError
from ladd_jax.planning.stored_bytes import (
    checkpoint_bytes,
    latent_bytes,
    record_bytes,
)
from ladd_jax.training.program import state_shapes

_SAVED = 0.75
"""Smallest share of the computed bytes of records and states that ends up on disk: states are
compressed, and so are records of an older version, beside which others are written."""

_GB = 1e9

_FOLDERS = {"encode": "encoded", "synthesize": "synthesized"}
"""Folders of the stages whose folder does not have the stage's name."""


def check_writable(folder: Path, flag: str = "workdir") -> None:
    """Checks that a flag names a folder, or a path where one can be made, and that it is writable.

    As a test, a file is made there, or where the folder would be made, and removed at once.

    Raises:
      UserError: the path is a file or below one, or the system does not let this process write.
    """
    check_directory(folder, flag)
    for place in (folder, *folder.absolute().parents):
        # A broken link is in the way, too.
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(
                f"--{flag}={folder} cannot be made, since {place} is not a folder: name another "
                f"path, or move that file"
            )
    # A file with a name, since a mounted bucket makes a file when it is closed, or never.
    file = _standing(folder) / f".{uuid.uuid4().hex}.partial"
    try:
        file.touch(exist_ok=False)
        file.unlink()
    except OSError as error:
        reason = disk_error(error) or f"{error.strerror}: name another path"
        raise UserError(f"--{flag}={folder} cannot be written to ({reason})") from error


def check_space(
    config: Config,
    workdir: Path,
    data: Path,
    sizes: Mapping[Bucket, int],
    built: Mapping[str, Any],
) -> None:
    """Checks that what the stages will write fits on the disks of the workdir and of its data.

    Results that exist already count as written.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      data: the directory of the run's data, which may be the workdir.
      sizes: number of records of each bucket that `encode` will write; empty if not known.
      built: objectives of the trainings, by the names of their stages.

    Raises:
      UserError: it does not fit. The disk and what the stages write are named, for both disks if
        neither has room.
    """
    # For each disk: the flag and the directory on it, and what is still to be written there.
    disks: dict[int, tuple[str, Path, dict[str, float]]] = {}
    for name, size in stage_bytes(config, sizes, built).items():
        folder = _FOLDERS.get(name, name)
        flag, place = ("data", data) if folder in DATA else ("workdir", workdir)
        flag = "workdir" if data == workdir else flag
        number = _standing(place).stat().st_dev
        _, _, missing = disks.setdefault(number, (flag, place, {}))
        missing[name] = max(0.0, _SAVED * size - _used(place / folder))
    problems = Problems()
    for flag, place, missing in disks.values():
        disk, total = shutil.disk_usage(_standing(place)), sum(missing.values())
        # Disks that are mounted from object stores report a size of 0.
        if not disk.total or total <= disk.free:
            continue
        listed = ", ".join(f"{name} {size / _GB:.3g} GB" for name, size in missing.items() if size)
        problems.add(
            UserError(
                f"the disk of --{flag}={place} has {disk.free / _GB:.3g} GB free and the stages "
                f"write at least {total / _GB:.3g} GB ({listed}): free space there, name a "
                f"directory on another disk, or make less (fewer records, a smaller "
                f"checkpoint.keep)"
            )
        )
    problems.tell()


def stage_bytes(
    config: Config, sizes: Mapping[Bucket, int], built: Mapping[str, Any]
) -> dict[str, int]:
    """Bytes that each stage of a config keeps on disk, before states are compressed.

    Args:
      config: the run's config.
      sizes: number of records of each bucket that `encode` writes.
      built: objectives of the trainings, by the names of their stages.

    Returns:
      Bytes by stage, for stages that write much: records, and checkpoints including one that is
      being written.
    """
    found: dict[str, int] = {}
    if "encode" in config.stages:
        # All of the text is counted: a user's encoders may fill what released ones leave zero.
        found["encode"] = sum(n * record_bytes(config, b, released=False) for b, n in sizes.items())
    if "synthesize" in config.stages:
        samples = config.synthesize.samples
        named = [Bucket.parse(name) for name in config.data.buckets]
        made = {bucket: samples for bucket in named} if samples else sizes
        found["synthesize"] = sum(n * latent_bytes(config, b) for b, n in made.items())
    for name, objective in built.items():
        if stage_of(name) in config.stages and settings_of(config, name).steps:
            found[name] = checkpoint_bytes(config, state_shapes(objective))
    return found


def _standing(path: Path) -> Path:
    """A folder, or its nearest parent that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _used(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        # A file that is removed meanwhile uses nothing.
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total

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
"""Of the bytes of records and states what is left on disk, at least: states are compressed, and
records of an older version, beside which others are written."""

_GB = 1e9

_FOLDERS = {"encode": "encoded", "synthesize": "synthesized"}
"""The folders of stages whose folder has another name."""


def check_writable(folder: Path, flag: str = "workdir") -> None:
    """Checks that what a flag names is a folder, or can become one, and can be written to.

    A file is made there, or where the folder would be made, and removed at once.

    Raises:
      UserError: it is a file or below one, or the system does not let this process write there.
    """
    check_directory(folder, flag)
    for place in (folder, *folder.absolute().parents):
        # A link to nothing is in the way, too.
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(
                f"--{flag}={folder} cannot be made, since {place} is no folder: name another path, "
                f"or move that file"
            )
    # With a name, since a file of a mounted bucket is made when it is closed, or never.
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

    What is there already of it counts as written.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      data: the directory of its data, which may be the workdir.
      sizes: records of each bucket that `encode` will write; empty where nobody knows.
      built: objectives of the trainings, by the names of their stages.

    Raises:
      UserError: it does not; the disk and the largest parts are named. Of two disks both may be.
    """
    # Of each disk the directory that is on it, and what is still to be written there.
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
        # Disks that are mounted from object stores tell of none.
        if not disk.total or total <= disk.free:
            continue
        listed = ", ".join(f"{name} {size / _GB:.3g} GB" for name, size in missing.items() if size)
        problems.add(
            UserError(
                f"the disk of --{flag}={place} has {disk.free / _GB:.3g} GB free and the stages "
                f"write {total / _GB:.3g} GB at least ({listed}): free space there, name a "
                f"directory on another disk, or make less (fewer records, a smaller "
                f"checkpoint.keep)"
            )
        )
    problems.tell()


def stage_bytes(
    config: Config, sizes: Mapping[Bucket, int], built: Mapping[str, Any]
) -> dict[str, int]:
    """Bytes of what each stage of a config keeps, before states are compressed.

    Args:
      config: the run's config.
      sizes: records of each bucket that `encode` writes.
      built: objectives of the trainings, by the names of their stages.

    Returns:
      Bytes by stage, of those that write much: records, and checkpoints with one in work.
    """
    found: dict[str, int] = {}
    if "encode" in config.stages:
        # All of the text is counted: encoders of one's own may fill what released ones leave zero.
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
    """A folder, or the last one on the way to it that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _used(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        # What is removed meanwhile uses nothing.
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total

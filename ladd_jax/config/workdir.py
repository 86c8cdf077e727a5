"""What a workdir keeps of the command that made it: its config, and its places.

Places are the directory of its data, which several runs may share, and the run that it began from.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ladd_jax.config.fields import Config, base_config, compare, typed
from ladd_jax.config.identity import FREE_FIELDS, FREE_PATHS, absent, config_difference, filled
from ladd_jax.config.own import not_installed
from ladd_jax.config.pretraining import NETWORKS
from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.object_store import address_of, fetch, is_address, place_of
from ladd_jax.paths import near
from ladd_jax.whole_files import read_json, write_text_whole

_FILE = "config.json"
_PLACES = "places.json"
_AGAIN = "remove it, and this command writes it again"

DATA = ("encoded", "held_out", "pretrain", "prefer", "synthesized")
"""Folders that runs may share: what `distil` reads, and none of its fields changes."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a run has what it does not make itself.

    Attributes:
      data: directory of the folders `DATA`; for folders in a bucket, the directory of their copies.
      origin: workdir of the run whose student it began with; None for a student of its own.
      step: step of that student's checkpoint.
    """

    data: Path
    origin: Path | None = None
    step: int | None = None


def places(workdir: Path) -> Places:
    """The places of a workdir; its own directory where it names none.

    Copies data in a bucket to this machine, as far as they are not copied yet.

    Raises:
      DamagedError: the file that names them is damaged.
      UserError: the bucket cannot be read.
    """
    path = workdir / _PLACES
    if address_of(workdir):
        fetch(address_of(path))
    remedy = "name them again by --data and --from"
    found = read_json(path, remedy) if path.is_file() else {}
    step = found.get("step")
    if step is not None and (type(step) is not int or step < 0):
        raise DamagedError(f"{path} is damaged (its step is {str(step)[:60]!r}): {remedy}")

    def place(name: str) -> Path | None:
        given = found.get(name)
        if given in (None, ""):
            return None
        if is_address(given):
            return place_of(given)
        try:
            return (workdir.resolve() / given).resolve()
        # For a loop of links, a zero byte, and a value that is not a text.
        except (RuntimeError, ValueError, TypeError) as error:
            raise DamagedError(f"{path} is damaged (of {name!r}: {error}): {remedy}") from error

    data = place("data") or workdir
    if address_of(data):
        for name in DATA:
            fetch(address_of(data / name))
    return Places(data, place("from"), step)


def data_directory(workdir: Path) -> Path:
    """Where the data of a run are."""
    return places(workdir).data


def first_run(workdir: Path) -> Path:
    """The first in the chain of runs that began from each other up to this one, which may be first.

    Raises:
      DamagedError: a file of places is damaged.
    """
    seen = {workdir}
    while (origin := places(workdir).origin) is not None:
        if origin in seen:
            raise DamagedError(f"{workdir / _PLACES} leads back to {origin}: name it by --from")
        seen.add(workdir := origin)
    return workdir


def data_named(workdir: Path, data: str, origin: str) -> Path:
    """Where the data of a run will be, by what its command names.

    Args:
      workdir: the run's workdir, which need not be there.
      data: a directory of data, or a workdir that has some or names one; or empty.
      origin: workdir of a run to begin from, whose data serve one that has none; or empty.

    Raises:
      NotFoundError: the data that results in a workdir were made from are not there any more.
    """
    if data:
        return _data_beside(Path(data))
    own = _data_beside(workdir)
    has_own = any((workdir / name).exists() for name in DATA)
    return _data_beside(Path(origin)) if origin and own == workdir and not has_own else own


def _data_beside(workdir: Path) -> Path:
    """`data_directory`, which has to be there if results in the workdir were made from it."""
    found = data_directory(workdir)
    used = any((workdir / name).exists() for name in ("finetune", "distil"))
    # Else the stages would make all data again, there and without a word.
    if used and found != workdir and not address_of(found) and not found.exists():
        raise NotFoundError(
            f"{workdir} was made with data in {found}, which does not exist{near(found)}: name "
            f"where they are now by --data, or copy them there as well"
        )
    return found


def folder(workdir: Path, name: str) -> Path:
    """The folder of a stage or a set of shards: in the run's data or in its workdir.

    Networks of other sizes are where the first one of the runs that began from each other trained
    them.
    """
    if name in NETWORKS:
        return first_run(workdir) / name
    return (data_directory(workdir) if name in DATA else workdir) / name


def settled(workdir: Path) -> bool:
    """Whether a workdir has its config."""
    return (workdir / _FILE).exists()


def check_directory(workdir: Path, flag: str = "workdir") -> None:
    """Raises UserError where a directory is a file."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--{flag}={workdir} is a file: name a directory")


def check_packages(workdir: Path) -> None:
    """Raises UserError if a workdir's config has settings of a package that is not installed."""
    path = workdir / _FILE
    own = read_json(path, _AGAIN).get("own", {}) if path.exists() else {}
    for name in own if isinstance(own, dict) else ():
        if gone := not_installed(f"own.{name}"):
            raise UserError(f"{path} has {gone}: install it, or use another --workdir")


def settle(workdir: Path, config: dict[str, Any], own: Places | None = None) -> None:
    """Writes the config and the places into a workdir, if they differ from those in it.

    It refuses no config: stages do, for their results, each of which knows what it was made with.

    Raises:
      UserError: the workdir is a file, or its config is damaged.
    """
    check_directory(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / _FILE
    if not path.exists() or config_difference(read_json(path, _AGAIN), config):
        _write(path, config)
    path = workdir / _PLACES
    named = {} if own is None else _named(own, workdir)
    if named != (read_json(path) if path.exists() else {}):
        _write(path, named)


def _named(own: Places, workdir: Path) -> dict[str, Any]:
    """Places as a workdir keeps them: relative, so that a folder of runs can be moved."""

    def relative(place: Path) -> str:
        return os.path.relpath(place.resolve(), workdir.resolve())

    named: dict[str, Any] = {}
    if own.data.resolve() != workdir.resolve():
        named["data"] = address_of(own.data) or relative(own.data)
    if own.origin is not None:
        named |= {"from": relative(own.origin), "step": own.step}
    return named


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text_whole(path, json.dumps(content, indent=2) + "\n")


def read(workdir: Path) -> Config:
    """The config of a used workdir.

    Raises:
      NotFoundError: it was never used.
      UserError: its config is damaged, or of another version of this package.
    """
    path = workdir / _FILE
    if not path.is_file():
        raise NotFoundError(f"{workdir} has no config.json: name the --workdir of a run")
    config = base_config()
    defaults = absent()
    remedy = "remove it, and the command main with the run's --config writes it again"
    found = read_json(path, remedy)
    if not found:
        # Else it would be a run of the defaults, which nobody asked for.
        raise DamagedError(f"{path} is damaged (it has no fields): {remedy}")
    old = _without_gone(found, defaults)
    values = _as_tuples(filled(old, defaults), config.to_dict())
    try:
        compare(config.to_dict(), values, "")
        config.update(values)
        return typed(config)
    except UserError as error:
        raise UserError(
            f"{path} is of another version of ladd_jax, or of a package beside it: {error}"
        ) from error


def _without_gone(old: Any, defaults: dict[str, Any]) -> Any:
    """A config without fields that only an older version had and that change no result."""
    if not isinstance(old, dict):
        return old
    kept = dict(old)
    for section in FREE_FIELDS:
        fields, known = old.get(section), defaults[section]
        if isinstance(fields, dict) and isinstance(known, dict):
            kept[section] = {name: value for name, value in fields.items() if name in known}
    for section, _, name in (path.partition(".") for path in FREE_PATHS):
        if isinstance(kept.get(section), dict) and name not in defaults[section]:
            kept[section] = {n: value for n, value in kept[section].items() if n != name}
    return kept


def _as_tuples(values: Any, base: Any) -> Any:
    """The inverse of what JSON does to tuples, where the default is one."""
    if isinstance(values, dict) and isinstance(base, dict):
        return {name: _as_tuples(value, base.get(name)) for name, value in values.items()}
    return tuple(values) if isinstance(values, list) and isinstance(base, tuple) else values

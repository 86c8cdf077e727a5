"""Rows of a study: the result of each run, saved when it finishes."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.cli.ownership import owned
from ladd_jax.errors import DamagedError, ExistsError, UserError
from ladd_jax.evaluation.rows import Row
from ladd_jax.whole_files import write_text_whole

_TRY_SECONDS = 0.2

Run = dict[str, Any]
"""A run's `recipe`, `seed`, `changes`, `config` (a digest of what the numbers depend on), and the
`rows` of its table; or `failed`, the reason why it has none."""


def read_rows(path: Path) -> list[Run]:
    """The runs of a study, as `add_row` has written them; empty if there is no file.

    Raises:
      DamagedError: the file holds something else.
    """
    if not path.exists():
        return []
    remedy = "remove it, and finished runs are read again"
    try:
        found = json.loads(path.read_text())
        for run in found:
            if not isinstance(run["recipe"], str) or type(run["seed"]) is not int:
                raise UserError("a run has no recipe or seed")
            if not isinstance(run["changes"], dict):
                raise UserError("a run has no changes")
            for row in run.get("rows", ()):
                Row.from_dict(row)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}): {remedy}") from error
    return list(found)


def add_row(path: Path, run: Mapping[str, Any]) -> None:
    """Adds a run, or replaces the one of the same recipe and seed; safe with concurrent jobs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not every network disk supports file locks, so a folder serves as the lock.
    writer = path.with_name(f".{path.name}.writer")
    while True:
        try:
            with owned(writer, "rows"):
                _add(path, run)
            break
        except ExistsError:
            time.sleep(_TRY_SECONDS)
    # Another job may be using it already.
    with contextlib.suppress(OSError):
        writer.rmdir()


def _add(path: Path, run: Mapping[str, Any]) -> None:
    key = run["recipe"], run["seed"]
    others = [old for old in read_rows(path) if (old["recipe"], old["seed"]) != key]
    write_text_whole(path, json.dumps([*others, run]) + "\n")


def rows_of(run: Mapping[str, Any]) -> list[Row]:
    """The table of a run; empty if the run failed."""
    return [Row.from_dict(row) for row in run.get("rows", ())]

"""What a command line names for comparison: places, each with a name to show."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ladd_jax.errors import UserError
from ladd_jax.object_store import is_address
from ladd_jax.paths import is_there

_MOST = 60  # Characters of a name, which stands below every picture.


class Entry(NamedTuple):
    """A name, and a run's workdir, a pipeline or a folder of pictures."""

    name: str
    place: str


def split(values: Sequence[str]) -> list[str]:
    """The parts of values with commas; one that exists is meant as it stands."""
    found = []
    for value in values:
        name, _, place = value.partition("=")
        whole = _exists(value) or ("," not in name and _exists(place))
        found += [value] if whole else [part.strip() for part in value.split(",")]
    return [part for part in found if part]


def read_entries(values: Sequence[str]) -> list[Entry]:
    """What `--compare` names: `PATH` or `NAME=PATH`, several of them with commas between.

    Raises:
      UserError: a name is empty, too long, or used twice.
    """
    found: dict[str, Entry] = {}
    for value in split(values):
        name, equals, place = value.partition("=")
        if not equals or _exists(value):
            # A folder that the user stands in has its name, too.
            name, place = Path(value).name or Path(value).resolve().name, value
        name = name.strip()
        if not name or not place or len(name) > _MOST:
            raise UserError(
                f"--compare={value} has a name of {len(name)} characters: write NAME=PATH with a "
                f"name of 1 to {_MOST}"
            )
        if name in found:
            raise UserError(
                f"--compare names two models {name!r}, {found[name].place} and {place}: name one "
                f"of them otherwise, as in --compare={name}2={place}"
            )
        found[name] = Entry(name, place)
    return list(found.values())


def _exists(value: str) -> bool:
    return bool(value) and not is_address(value) and is_there(value)

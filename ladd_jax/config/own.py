"""Settings of other packages: what they register here are sections of `own` in every config.

A config has them, checks them, and compares them with those of another run, as it does with its own
fields.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from ladd_jax.added_fields import with_fields
from ladd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Section:
    """Settings of a package, `config.own.NAME`.

    Attributes:
      defaults: an instance of a frozen dataclass. Its fields are bools, whole numbers, floats,
        texts, tuples of these, and frozen dataclasses of such fields. Its `__post_init__` refuses
        invalid values with UserError, for example by `check_numbers`.
      beside: name of the section of the config that they belong to: results that depend on that
        section depend on these settings, too. With `distil` a change leaves all data as they are,
        with `data` everything is made again, with `evaluate` only what is measured.

    Raises:
      UserError: `defaults` is not such an instance.
    """

    defaults: Any
    beside: str

    def __post_init__(self) -> None:
        try:
            # A dataclass that is not frozen, or holds a list, has no hash.
            hash(self.defaults)
            is_section = dataclasses.is_dataclass(type(self.defaults))
        except TypeError:
            is_section = False
        if not is_section:
            raise UserError(
                f"the defaults of a section are {self.defaults!r}: give an instance of a frozen "
                f"dataclass, with tuples instead of lists"
            )


SECTIONS: dict[str, Section] = {}
"""The sections that are registered, by their name in `own` of a config."""


def own_sections() -> Any:
    """The section `own` of a config: a frozen dataclass with a field for each entry of `SECTIONS`,
    at its defaults.

    Raises:
      UserError: a name cannot be the name of a field.
    """
    return _made(tuple(SECTIONS.items()))


@functools.cache
def _made(entries: tuple[tuple[str, Section], ...]) -> Any:
    fields = {name: (type(section.defaults), section.defaults) for name, section in entries}
    return with_fields("Own", "a section of own", fields, _own_of)()


def _own_of(values: dict[str, Any]) -> Any:
    return dataclasses.replace(own_sections(), **values)


def not_installed(path: str) -> str:
    """What there is to say of a field of `own` whose package is not installed; empty for others.

    Args:
      path: path of a field, such as `own.near.weight`.
    """
    section, _, rest = path.partition(".")
    name = rest.partition(".")[0]
    if section != "own" or not name or name in SECTIONS:
        return ""
    return f"own.{name}, of a package that is not installed here"


def own_beside(config: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """The sections of `own` that belong to any of some other sections, by name.

    Args:
      config: a config as a dict. A section of a package that is not installed now is included,
        since it is not known what it belongs to.
      sections: names of the other sections.
    """
    return {
        name: values
        for name, values in config.get("own", {}).items()
        if name not in SECTIONS or SECTIONS[name].beside in sections
    }

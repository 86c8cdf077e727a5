"""Settings of other packages: what they register here are sections of `own` in every config.

A config has them, checks them, and tells them apart from those of another run, as it does its own
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
        texts, tuples of these, and frozen dataclasses of such fields. A value that is of no use it
        refuses with UserError in `__post_init__`, as `check_numbers` does.
      beside: name of the section of the config that they belong to: results that depend on that
        one depend on these, too. With `distil` a change leaves all data as they are, with `data`
        all is made anew, with `evaluate` only what is measured.

    Raises:
      UserError: the defaults are none.
    """

    defaults: Any
    beside: str

    def __post_init__(self) -> None:
        try:
            # One that is not frozen, or holds a list, has none.
            hash(self.defaults)
            is_section = dataclasses.is_dataclass(type(self.defaults))
        except TypeError:
            is_section = False
        if not is_section:
            raise UserError(
                f"the defaults of a section are {self.defaults!r}: give an instance of a frozen "
                f"dataclass, with tuples and no lists"
            )


SECTIONS: dict[str, Section] = {}
"""By the name that a section has in `own` of a config."""


def own_sections() -> Any:
    """The section `own` of a config: a frozen dataclass with a field of each name of `SECTIONS`,
    which has its defaults.

    Raises:
      UserError: a name cannot be that of a field.
    """
    return _made(tuple(SECTIONS.items()))


@functools.cache
def _made(entries: tuple[tuple[str, Section], ...]) -> Any:
    fields = {name: (type(section.defaults), section.defaults) for name, section in entries}
    return with_fields("Own", "a section of own", fields, _own_of)()


def _own_of(values: dict[str, Any]) -> Any:
    return dataclasses.replace(own_sections(), **values)


def own_beside(config: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """The sections of `own` that belong to some of the others, by name.

    Args:
      config: a config as a dict. Of a section of a package that is not installed now it is not
        known what it belongs to, and it is counted.
      sections: names of the others.
    """
    return {
        name: values
        for name, values in config.get("own", {}).items()
        if name not in SECTIONS or SECTIONS[name].beside in sections
    }

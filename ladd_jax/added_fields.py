"""Dataclasses of settings with a field for each entry that other packages add to a table."""

import dataclasses
import keyword
from collections.abc import Callable, Mapping
from typing import Any

from ladd_jax.errors import UserError


def with_fields(
    title: str,
    of: str,
    fields: Mapping[str, tuple[Any, Any]],
    again: Callable[[dict[str, Any]], Any],
    base: type | None = None,
) -> type[Any]:
    """A frozen dataclass whose instances can be sent to another process.

    Args:
      title: name of the class.
      of: what the fields are named after, in words, for messages.
      fields: type and default of each field, by its name.
      again: a function at the top of a module that makes an instance from its values, by name: the
        other process does not have this class.
      base: a dataclass with further fields.

    Raises:
      UserError: a name cannot be the name of a field, or `base` has a field of that name.
    """
    taken = set() if base is None else {field.name for field in dataclasses.fields(base)}
    for name in fields:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise UserError(
                f"{name!r} is the name of {of} and cannot be the name of a field: use letters, "
                f"digits and _, such as my_loss"
            )
        if name in taken:
            raise UserError(f"{name!r} is the name of {of} and of a field already: use another")
    return dataclasses.make_dataclass(
        title,
        [(name, kind, dataclasses.field(default=value)) for name, (kind, value) in fields.items()],
        bases=() if base is None else (base,),
        namespace={"__reduce__": lambda self: (again, (dict(vars(self)),))},
        frozen=True,
        kw_only=True,
    )

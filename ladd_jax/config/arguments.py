"""The argument of a config file: what stands after the colon of `--config=FILE:name=value`."""

from collections.abc import Mapping
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.names import nearest


def parse_arguments(text: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of a config file, `name=value,name=value`, over defaults of the same types.

    What follows a comma and is not a `name=` belongs to the value before it, which may be a list of
    paths.

    Raises:
      UserError: a name that is not in `defaults`, or a value that is not of its default's type.
    """
    values = dict(defaults)
    for part in _parts(text or "", defaults):
        name, equals, value = part.partition("=")
        if name not in defaults or not equals:
            raise UserError(
                f"{part!r} after the config's colon is not name=value{nearest(name, defaults)}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(value)
        except ValueError as error:
            raise UserError(
                f"{name} is {value!r}: use a value such as {defaults[name]!r}"
            ) from error
    return values


def _parts(text: str, defaults: Mapping[str, Any]) -> list[str]:
    """The arguments, each with the pieces of its value that are not arguments themselves."""
    parts: list[str] = []
    for piece in filter(None, text.split(",")):
        name = parts[-1].partition("=")[0] if parts else ""
        if "=" not in piece and isinstance(defaults.get(name), str):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return parts

"""The argument of a config file: what stands after the colon of `--config=FILE:name=value`."""

from collections.abc import Mapping
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.names import nearest


def parse_arguments(text: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The argument of a config file, `name=value,name=value`, over defaults of the same types.

    Raises:
      UserError: a name that is not in `defaults`, or a value that is not of its default's type.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
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

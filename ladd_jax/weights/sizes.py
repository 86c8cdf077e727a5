"""Checks of the sizes in another library's `config.json`, before a network is built from them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.ranges import Range, is_number

LARGEST = 2**24
"""Upper limit for any size: no released network has a larger width or vocabulary."""


def check_sizes(values: Mapping[str, Any], names: Iterable[str], file: Path) -> None:
    """Checks that sizes are whole numbers that a network can have.

    Args:
      values: the content of the file.
      names: fields that must be there.
      file: the file, for messages.

    Raises:
      UserError: one is missing, is not a whole number, or is below 1 or above `LARGEST`.
    """
    for name in names:
        if name not in values:
            raise UserError(f"{file} has no {name}: get the file again")
        value = values[name]
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise UserError(
                f"{name} is {_brief(value)} in {file}: it must be a whole number from 1 to "
                f"{LARGEST}, get the file again"
            )


def check_depth(depth: int, tensors: Mapping[str, Any], file: Path) -> None:
    """Raises UserError if there are fewer tensors than layers, as each layer has several."""
    if depth > len(tensors):
        raise UserError(
            f"{file} describes {depth} layers and the weights beside it have {len(tensors)} "
            f"tensors: get the files of one model"
        )


EPSILON = Range(above=0, most=1)
"""Range of the epsilon that a norm adds to the variance."""


def check_numbers(values: Mapping[str, Any], ranges: Mapping[str, Range], file: Path) -> None:
    """Raises UserError, naming the field, if a field that is present is outside its range."""
    for name, allowed in ranges.items():
        if name in values and not is_number(values[name], allowed):
            raise UserError(
                f"{name} is {_brief(values[name])} in {file}: it must be {allowed}, get the file "
                f"again"
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

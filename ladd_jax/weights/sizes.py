"""Sizes of networks that a `config.json` of others states, before anything is built of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.ranges import Range, is_number

LARGEST = 2**24
"""Largest size of a network: no released one has a width or a vocabulary beyond it."""


def check_sizes(values: Mapping[str, Any], names: Iterable[str], file: Path) -> None:
    """Checks that sizes are whole numbers that a network can have.

    Args:
      values: the content of the file.
      names: fields that must be there.
      file: the file, for messages.

    Raises:
      UserError: one is missing, is no whole number, or is below 1 or above `LARGEST`.
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
    """Raises UserError where there are fewer tensors than layers, each of which has several."""
    if depth > len(tensors):
        raise UserError(
            f"{file} describes {depth} layers and the weights beside it have {len(tensors)} "
            f"tensors: get the files of one model"
        )


EPSILON = Range(above=0, most=1)
"""What a norm adds to a variance."""


def check_numbers(values: Mapping[str, Any], ranges: Mapping[str, Range], file: Path) -> None:
    """Raises UserError where a field that is there is no number of its range, by its name."""
    for name, allowed in ranges.items():
        if name in values and not is_number(values[name], allowed):
            raise UserError(
                f"{name} is {_brief(values[name])} in {file}: it must be {allowed}, get the file "
                f"again"
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

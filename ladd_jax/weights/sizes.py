"""Sizes of networks that a `config.json` of others states, before anything is built of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.ranges import INT64, is_number

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
        value = values.get(name)
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


def check_numbers(values: Mapping[str, Any], names: Iterable[str], file: Path) -> None:
    """Raises UserError where fields that are there are no finite numbers."""
    for name in names:
        value = values.get(name, 0)
        if not is_number(value, INT64):
            raise UserError(f"{name} is {_brief(value)} in {file}: it must be a number")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

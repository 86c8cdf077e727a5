"""Ranges of settings that are numbers, and the sentence about one that lies outside."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ladd_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Finite numbers between two limits; a limit of None sets none.

    Attributes:
      least: the smallest number.
      above: a number that all are above.
      most: the largest number.
      below: a number that all are below.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            # False for NaN, too; and whole numbers may be too large for a float.
            abs(value) <= sys.float_info.max
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words that follow "use" in a message."""
        if self.most is None and self.below is None:
            if self.least is None:
                return "a finite number" if self.above is None else f"a number above {self.above}"
            return f"{self.least} or more"
        high = f"below {self.below}" if self.most is None else f"{self.most}"
        if self.least is None and self.above is None:
            return f"a number {high}" if self.most is None else f"{high} or less"
        low = f"above {self.above}" if self.least is None else f"{self.least}"
        return f"a number from {low} to {high}"


FINITE = Range()
POSITIVE = Range(above=0)
COUNT = Range(least=1)
NOT_NEGATIVE = Range(least=0)
SHARE = Range(least=0, most=1)
STRENGTH = Range(above=0, most=1)
DECAY = Range(least=0, below=1)
STEPS = Range(least=1, most=10_000)
"""Of a sampler, each of which is a pass of the network."""
SEED = Range(least=0, most=2**32 - 1)
"""Libraries that draw random numbers take no other seeds, or treat two of them as one."""


_LEAST, _MOST = 1e-37, 2**31 - 1


def refusal(value: float, allowed: Range) -> str:
    """What to use instead of a setting's value, in words; empty if nothing is wrong with it.

    Networks and optimizers compute in 32 bits, which hold no larger whole number than `_MOST`, and
    round very small numbers to the zero that some settings must not have.
    """
    if value not in allowed:
        return f"use {allowed}"
    if isinstance(value, int):
        return f"use {_MOST} or less" if value > _MOST and allowed.most is None else ""
    if allowed.above == 0 and value < _LEAST:
        return f"use {_LEAST} or more, since less is 0 in 32 bits"
    return ""


def is_number(value: Any, within: Range = FINITE) -> bool:
    """Whether a JSON value is a number in a range; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value in within


def check_choice(value: str, what: str, *choices: str) -> None:
    """Raises UserError where a value, which the message calls `what`, is not one of the choices."""
    if value not in choices:
        raise UserError(f"{what} {value!r} is not one of {', '.join(choices)}: use one of them")


def check_numbers(section: Any, ranges: Mapping[str, Range]) -> None:
    """Checks fields of a dataclass.

    Args:
      section: the dataclass.
      ranges: the range of each field, by its name; a field is a number or a tuple of numbers.

    Raises:
      UserError: a number is outside of its range.
    """
    for name, allowed in ranges.items():
        value = getattr(section, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if wrong := next(filter(None, (refusal(number, allowed) for number in numbers)), ""):
            each = " for each" if isinstance(value, tuple) else ""
            raise UserError(f"{name} is {value}: {wrong}{each}")


def check_distinct(section: Any, *names: str) -> None:
    """Raises UserError where a field of a dataclass, a tuple, has an entry twice."""
    for name in names:
        value = getattr(section, name)
        twice = [entry for entry in dict.fromkeys(value) if value.count(entry) > 1]
        if twice:
            raise UserError(f"{name} is {value}, with {twice[0]!r} more than once: name it once")

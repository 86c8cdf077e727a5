"""Conditions that networks of other packages read besides the text, made from a user's values.

Training takes such an array from the data; `sample` and `serve` make it here. h w latent grid,
C channels, J joined channels, H W picture.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ladd_jax.errors import UserError


class Wanted(NamedTuple):
    """The array that a value must become, and what helps to make it from a picture.

    Attributes:
      shape: shape of the array without the batch; `[h, w, J]` if it is joined to x_t.
      encode: turns a picture, uint8 `[H, W, 3]` of any size, into a latent of the bucket, float32
        `[h, w, C]`.
      fit: turns such a picture into pixels of the bucket, float32 `[H', W', 1 or 3]` in [-1, 1].
    """

    shape: tuple[int, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    fit: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Condition:
    """How an array that a network reads besides the text is made from a user's value.

    Attributes:
      words: what the array is, such as `class`: the label on the page and the name in messages.
      read: `read(value, wanted)` returns the array, in the wanted shape. The value is a text, or
        the bytes of a file. `read` raises UserError if it cannot use the value.
      default: the text that is used if a user gives no value; None if a user must give one.
      file: whether a value names a file. On the page of `serve` users upload the file and cannot
        name one on the server, so `read` must never take a text for a path.

    Raises:
      UserError: values are files, but the default is a text.
    """

    words: str
    read: Callable[[Any, Wanted], np.ndarray]
    default: str | None = None
    file: bool = False

    def __post_init__(self) -> None:
        if self.file and self.default is not None:
            raise UserError(
                f"the default of the condition {self.words!r} is the text {self.default!r}, and "
                f"its values are files: leave out default or file"
            )


CONDITIONS: dict[str, Condition] = {}
"""By name of an array in a cond, or of a kind of `data.joined` for what is joined to x_t."""

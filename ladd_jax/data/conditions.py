"""What networks of other packages are given besides the text: how it is made of what a user says.

Data have such an array themselves; `sample` and `serve` make it. h w latent grid, C channels,
J joined channels, H W picture.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ladd_jax.errors import UserError


class Wanted(NamedTuple):
    """The array that a value is to become.

    Attributes:
      shape: its dimensions, without the batch; `[h, w, J]` of what is joined to x_t.
      encode: a picture uint8 `[H, W, 3]` of any size to the latent float32 `[h, w, C]` of the
        bucket.
      fit: such a picture to the pixels of the bucket, float32 `[H', W', 1 or 3]` in [-1, 1].
    """

    shape: tuple[int, ...]
    encode: Callable[[np.ndarray], np.ndarray]
    fit: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Condition:
    """An array that a network is given besides the text, and how it is made of what a user says.

    Attributes:
      words: what it is, such as `class`: a label on the page, and its name in messages.
      read: `read(value, wanted)`: the array of a value, of the shape that is wanted. The value is a
        text, or of a file the bytes in it. One that is of no use it refuses with UserError.
      default: the text that stands for none; None: a user must give one.
      file: whether a value names a file. On the page one is uploaded, and none that lies on the
        server can be named: so a text is never to be taken for a path.

    Raises:
      UserError: values are files, and the default is a text.
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
"""By the name of the array in a cond; of what is joined to x_t by its kind, `data.joined`."""

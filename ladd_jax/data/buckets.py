"""Aspect buckets: the shapes that latents come in."""

import dataclasses
import math
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """Shape of a latent grid.

    Attributes:
      height: rows, in latent pixels.
      width: columns, in latent pixels.
    """

    height: int
    width: int

    @property
    def name(self) -> str:
        """Rows x columns, such as `8x16`."""
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, name: str) -> "Bucket":
        """The bucket of a name.

        Raises:
          ValueError: the name is not two positive numbers around an x.
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
        if not match:
            raise ValueError(f"bucket {name!r} is not ROWSxCOLUMNS, such as 8x16")
        return cls(int(match[1]), int(match[2]))


def nearest(buckets: Iterable[Bucket], height: float, width: float) -> Bucket:
    """The bucket whose aspect ratio is nearest, on a log scale, to that of height x width."""
    aspect = math.log(width / height)
    return min(sorted(buckets), key=lambda b: abs(math.log(b.width / b.height) - aspect))

"""Decides which pictures are for judges, and never for training."""

import hashlib
from collections import Counter
from collections.abc import Iterable

LEAST = 16
"""Number of pictures that judges need from each bucket that is trained."""


def draw(picture: bytes) -> float:
    """A number in [0, 1) that follows from a picture's bytes alone.

    Pictures with a number below the share are held out. So further data move no picture from one
    side to the other, a larger share only adds pictures, and a picture that several records have
    is on one side.
    """
    return (int.from_bytes(hashlib.sha256(picture).digest()[:8]) >> 11) / 2**53


def lowest_draws(draws: Iterable[float], missing: int, spare: int) -> set[float]:
    """Draws of further pictures to hold out: the lowest ones, as a larger share would choose them.

    Args:
      draws: a draw for each record for training.
      missing: number of records that are still to be held out.
      spare: number of records that training can do without.

    Returns:
      Draws of at most `spare` records, which are fewer than `missing` if there are no more.
    """
    found: set[float] = set()
    for drawn, count in sorted(Counter(draws).items()):
        if missing <= 0:
            break
        # All records of one picture must be on the same side.
        if count <= spare:
            found.add(drawn)
            missing, spare = missing - count, spare - count
    return found

"""Which pictures are for judges, and never for training."""

import hashlib
from collections import Counter
from collections.abc import Iterable

LEAST = 16
"""Pictures that judges need of each bucket that is trained."""


def draw(picture: bytes) -> float:
    """A number from 0 to below 1 that follows from a picture's bytes alone.

    Those below a share are held out. So more data move no picture from one side to the other, a
    larger share adds to a smaller one, and a picture that several records have is on one side.
    """
    return (int.from_bytes(hashlib.sha256(picture).digest()[:8]) >> 11) / 2**53


def lowest_draws(draws: Iterable[float], missing: int, spare: int) -> set[float]:
    """Draws of further pictures to be held out: the lowest ones, as of a larger share.

    Args:
      draws: of the records for training, one for each record.
      missing: number of records that are still to be held out.
      spare: number of records that training can do without.

    Returns:
      Draws of records, `spare` at most, and fewer than `missing` where there are no more.
    """
    found: set[float] = set()
    for drawn, count in sorted(Counter(draws).items()):
        if missing <= 0:
            break
        # All records of one picture go together.
        if count <= spare:
            found.add(drawn)
            missing, spare = missing - count, spare - count
    return found

"""Names and numbers in words."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, valid: Iterable[str]) -> str:
    """For an unknown name: `: did you mean X?`, or the valid names where none is near."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f": did you mean {close[0]}?" if close else f": valid are {', '.join(sorted(names))}"


def counted(count: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

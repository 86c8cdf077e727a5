"""What a user may have meant by a name that is not there."""

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str:
    """`: did you mean X?`, or the valid names where none is near."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f": did you mean {close[0]}?" if close else f": valid are {', '.join(sorted(names))}"

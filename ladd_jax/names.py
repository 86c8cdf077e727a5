"""Names and numbers in words, and names of fields."""

import difflib
import keyword
from collections.abc import Collection, Iterable, Sequence

from ladd_jax.errors import UserError


def nearest(name: str, valid: Iterable[str]) -> str:
    """For a name that is not there: `: did you mean X?`, or the valid ones where none is near."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f": did you mean {close[0]}?" if close else f": valid are {', '.join(sorted(names))}"


def counted(count: int, what: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {what}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def check_field(name: str, of: str, taken: Collection[str] = ()) -> None:
    """Raises UserError where a name cannot be that of a field.

    Args:
      name: the name.
      of: what it is the name of, for the message.
      taken: names of fields that there are.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} is the name of {of} and none of a field: use letters, digits and _, such as "
            f"my_loss"
        )
    if name in taken:
        raise UserError(f"{name!r} is the name of {of} and of a field already: use another")

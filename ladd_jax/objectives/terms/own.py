"""Terms of the student's loss that other packages add."""

from collections.abc import Callable
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.objectives.terms.base import Term

OWN_TERMS: dict[str, Callable[[Any], Term | None]] = {}
"""By the name of a term, functions from a whole config to the term, or to None if it is left out.

`distil.ramp` has factors for each term, under its name.
"""


def own_terms(config: Any) -> tuple[Term, ...]:
    """The terms of other packages that a config asks for, in the order of the table.

    Args:
      config: the run's config.

    Raises:
      UserError: a term's name differs from its entry's, under which it is logged and ramped.
    """
    found = {name: make(config) for name, make in OWN_TERMS.items()}
    for name, term in found.items():
        if term is not None and term.name != name:
            raise UserError(
                f"the entry {name!r} of OWN_TERMS makes a term named {term.name!r}: use one name "
                f"for both"
            )
    return tuple(term for term in found.values() if term is not None)

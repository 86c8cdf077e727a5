"""Terms of the student's loss that other packages add."""

from collections.abc import Callable
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.objectives.terms.base import Term

OWN_TERMS: dict[str, Callable[[Any], Term | None]] = {}
"""By the name of a term: from a whole config to the term, or to None where it leaves it out.

`distil.ramp` has factors of each, under its name.
"""


def own_terms(config: Any) -> tuple[Term, ...]:
    """The terms of other packages that a config has, in the order of the table.

    Args:
      config: the run's config.

    Raises:
      UserError: a term has another name than its entry, under which it is logged and ramped.
    """
    found = {name: make(config) for name, make in OWN_TERMS.items()}
    for name, term in found.items():
        if term is not None and term.name != name:
            raise UserError(
                f"OWN_TERMS has {name!r}, which makes a term of the name {term.name!r}: use one "
                f"name for both"
            )
    return tuple(term for term in found.values() if term is not None)

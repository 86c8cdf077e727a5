"""Terms of the student's loss, one small file each.

To add one, write its file, give it an entry in `TERMS`, and give `LADDSettings` its fields. Terms
that other packages add are in `terms.own`.
"""

import math
from collections.abc import Callable
from typing import Any

from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.terms.adversarial import Adversarial
from ladd_jax.objectives.terms.base import Term
from ladd_jax.objectives.terms.distillation import Distillation
from ladd_jax.objectives.terms.moments import Moments
from ladd_jax.objectives.terms.paired import Paired
from ladd_jax.objectives.terms.reconstruction import Reconstruction

TERMS: dict[str, Callable[[Any], Term | None]] = {
    "adversarial": lambda settings: Adversarial(ADVERSARIAL_LOSSES[settings.loss]),
    "distillation": lambda settings: (
        Distillation(settings.distillation_weight) if settings.distillation_weight else None
    ),
    "moments": lambda settings: (
        Moments(settings.moments_weight, settings.moments_t_hat)
        if settings.moments_weight
        else None
    ),
    "paired": lambda settings: Paired(settings.paired_weight) if settings.paired_weight else None,
    "reconstruction": lambda settings: (
        Reconstruction(settings.reconstruction_weight, settings.reconstruction_gamma or math.inf)
        if settings.reconstruction_weight
        else None
    ),
}
"""By name, functions from `LADDSettings` to a term, or to None if the settings leave it out."""


def terms_of(settings: Any) -> tuple[Term, ...]:
    """The terms that `LADDSettings` ask for, in the order of the table."""
    made = (make(settings) for make in TERMS.values())
    return tuple(term for term in made if term is not None)

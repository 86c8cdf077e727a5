"""The adversarial term: the student's samples through the critic's updated heads."""

import dataclasses

import jax

from ladd_jax.objectives.adversarial import (
    AdversarialLoss,
    RelativisticLoss,
    student_loss_at,
    student_pair_loss_at,
)
from ladd_jax.objectives.terms.base import REAL_FEATURES, Seen


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """The generator's side of the adversarial loss, mean over heads and locations."""

    form: AdversarialLoss | RelativisticLoss
    weight: float = 1.0
    name: str = "generator"

    @property
    def needs(self) -> frozenset[str]:
        """See `Term`: a relativistic loss sees both samples of a pair."""
        return frozenset({REAL_FEATURES} if isinstance(self.form, RelativisticLoss) else ())

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        if isinstance(self.form, RelativisticLoss):
            assert seen.real is not None
            pairs = seen.fake.beside(seen.real)
            return pairs.value_and_gradient(seen.heads, student_pair_loss_at(self.form))
        return seen.fake.value_and_gradient(seen.heads, student_loss_at(self.form))

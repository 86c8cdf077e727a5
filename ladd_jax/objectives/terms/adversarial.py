"""The adversarial term: the student's samples through the critic's updated heads."""

import dataclasses

import jax

from ladd_jax.objectives.adversarial import AdversarialLoss, student_loss_at
from ladd_jax.objectives.terms.base import Seen


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """The generator's side of the adversarial loss, mean over heads and locations."""

    form: AdversarialLoss
    weight: float = 1.0
    name: str = "generator"
    needs: frozenset[str] = frozenset()

    def __call__(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """See `Term`."""
        return seen.fake.value_and_gradient(seen.heads, student_loss_at(self.form))

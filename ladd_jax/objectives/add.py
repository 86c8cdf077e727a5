"""Adversarial Diffusion Distillation (Sauer et al. 2023, arXiv 2311.17042), for rectified flow.

LADD came of it, and the step is LADD's. What differs: the critic looks at decoded pictures through
DINOv2, and nothing is noised before it; the distance to the teacher's own x_0 is one of pictures.
The student is sampled as one of LADD is.
"""

import dataclasses

import jax

from ladd_jax.objectives.base import Metrics
from ladd_jax.objectives.critics.pixels import PixelCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.objectives.passes import Drawn, Passes
from ladd_jax.objectives.terms import terms_of
from ladd_jax.objectives.terms.base import Term
from ladd_jax.objectives.terms.distillation import Distillation
from ladd_jax.objectives.terms.moments import Moments
from ladd_jax.objectives.terms.pixel_distillation import PixelDistillation


@dataclasses.dataclass(frozen=True)
class ADD(LADD):
    """LADD with a critic in pixels.

    `renoise_*` say what the teacher of the distillation term sees, and further updates of the heads
    are on the same samples, since these are not noised anew.

    Attributes:
      critic: heads on DINOv2.
    """

    critic: PixelCritic

    @property
    def loss_terms(self) -> tuple[Term, ...]:
        """See `LADD.loss_terms`; the distillation is one of pictures, and moments are of features
        without noise."""
        if self.terms is not None:
            return self.terms
        return (*map(_in_pixels, terms_of(self)), *self.own_terms)

    def _metrics(self, drawn: Drawn, passes: Passes, is_due: jax.Array) -> Metrics:
        found = super()._metrics(drawn, passes, is_due)
        # The heads see no noise, so that their accuracy in its bands says nothing.
        return {name: value for name, value in found.items() if "/t_hat_" not in name}


def _in_pixels(term: Term) -> Term:
    if isinstance(term, Distillation):
        return PixelDistillation(term.weight)
    # t_hat is what the teacher of the distillation sees.
    return dataclasses.replace(term, t_hat=1.0) if isinstance(term, Moments) else term

"""Adversarial Diffusion Distillation (Sauer et al. 2023, arXiv 2311.17042), for rectified flow.

LADD grew out of it, and the step here is LADD's. What differs: the critic looks at decoded pictures
through DINOv2, and nothing is noised first; the distance to the teacher's own x_0 is measured
between pictures. The student is sampled like LADD's.
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

    `renoise_*` set the noise that the teacher of the distillation term sees. Further updates of the
    heads see the same samples again, since nothing is re-noised for the critic.

    Attributes:
      critic: heads on DINOv2.
    """

    critic: PixelCritic

    @property
    def loss_terms(self) -> tuple[Term, ...]:
        """See `LADD.loss_terms`; distillation compares pictures here, and moments are those of
        features without noise."""
        if self.terms is not None:
            return self.terms
        return (*map(_in_pixels, terms_of(self)), *self.own_terms)

    def _metrics(self, drawn: Drawn, passes: Passes, is_due: jax.Array) -> Metrics:
        found = super()._metrics(drawn, passes, is_due)
        # The heads see no noise, so their accuracy by band of t_hat says nothing.
        return {name: value for name, value in found.items() if "/t_hat_" not in name}


def _in_pixels(term: Term) -> Term:
    if isinstance(term, Distillation):
        return PixelDistillation(term.weight)
    # t_hat is only the noise of the distillation's teacher here: the critic's features have none.
    return dataclasses.replace(term, t_hat=1.0) if isinstance(term, Moments) else term

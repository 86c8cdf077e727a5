"""The settings of LADD's step."""

import dataclasses

from ladd_jax.errors import UserError
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.student_inputs import StudentInputs
from ladd_jax.objectives.terms.own import OWN_TERMS
from ladd_jax.objectives.terms.ramp import Ramp, ramp_of
from ladd_jax.ranges import COUNT, DECAY, NOT_NEGATIVE, SHARE, check_choice, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class LADDSettings(StudentInputs):
    """How a student is distilled, besides its inputs and their re-noising.

    Attributes:
      same_renoise: real and fake share t_hat and noise. Open in the paper.
      loss: key of `ADVERSARIAL_LOSSES`. Open in the paper; ADD uses hinge.
      r1_gamma: weight of the gradient penalty on each head's input at real samples (ADD: 1e-5), and
        at fake ones where the loss is relativistic; 0 leaves it out.
      r1_interval: steps between penalties, each multiplied by the interval.
      r1_noise: standard deviation, relative to the size of a head's input, of the noise whose
        effect on the logits the penalty is estimated from (APT; FastGen: 0.1); 0 takes the gradient
        itself.
      distillation_weight: weight of the distance to the teacher's own x_0, for real data (ADD:
        2.5). The paper drops it (0) for synthetic data.
      reconstruction_weight: weight of the distance to the sample that the input was noised from
        (paper: 0).
      reconstruction_gamma: largest ((1 - t) / t)^2 that this distance is multiplied by; 0 for no
        limit.
      paired_weight: weight of the distance, at t = 1, to the sample that the data generator made
        from the same noise (paper: 0); if it is not 0, the batch must have `noise_keys`.
      paired_share: share of the inputs at t = 1 that are such noise, where the weight is not 0; the
        others are noise that no sample was made from.
      moments_weight: weight of the distance of a sample's mean features to those of the real sample
        that it is judged beside (paper: 0).
      moments_t_hat: largest t_hat at which these are compared (SwD: 0.602).
      consistency_weight: weight of the distance between predictions along a path of the data
        generator (paper: 0).
      misaligned_share: share of the loss on fakes that goes to extra ones, real latents with
        the condition of another sample; 0 for none. It holds the student to its prompts.
      ramp: how weights change while the student is trained (paper: they do not).
      head_updates: updates of the heads a step, each on fresh re-noising.
      student_interval: steps between updates of the student; in the others the heads alone are
        updated. Warm-up and decay of its optimizer count its updates.
      refreshed_heads: mean share of the heads that is initialised again in a step (NitroFusion:
        0.01), so that the student cannot learn what one set of heads does not see; 0 keeps all.
      accumulated_heads: the heads that the student's loss sees where there are several
        micro-batches: `updated` gives the same update as a single batch, by a second pass over all
        micro-batches; `before` takes the heads from before the step and saves that pass.
      ema_decay: decay of the student's moving average.
    """

    same_renoise: bool = True
    loss: str = "hinge"
    r1_gamma: float = 1e-5
    r1_interval: int = 1
    r1_noise: float = 0.0
    distillation_weight: float = 0.0
    reconstruction_weight: float = 0.0
    reconstruction_gamma: float = 0.0
    paired_weight: float = 0.0
    paired_share: float = 1.0
    moments_weight: float = 0.0
    moments_t_hat: float = 1.0
    consistency_weight: float = 0.0
    misaligned_share: float = 0.0
    ramp: Ramp = dataclasses.field(default_factory=lambda: ramp_of(tuple(OWN_TERMS))())
    head_updates: int = 1
    student_interval: int = 1
    refreshed_heads: float = 0.0
    accumulated_heads: str = "updated"
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.loss, "loss", *ADVERSARIAL_LOSSES)
        if not 0 <= self.misaligned_share < 1:
            raise UserError(
                f"misaligned_share {self.misaligned_share} is not a share: use 0 for none, or a "
                f"number below 1"
            )
        drawn = zip(self.timesteps, self.probabilities, strict=True)
        if self.paired_weight and not any(t == 1 and share for t, share in drawn):
            raise UserError(
                f"paired_weight is {self.paired_weight} and 1, the only time that has pairs, is "
                f"never drawn from the timesteps {self.timesteps}: use 0"
            )
        if self.paired_weight and not self.paired_share:
            raise UserError(
                f"paired_weight is {self.paired_weight} and paired_share 0: use a share above 0, "
                f"or a weight of 0"
            )
        if self.moments_weight and not self.same_renoise:
            raise UserError(
                f"moments_weight is {self.moments_weight} with same_renoise=False, and features "
                f"are compared under the same noise: use 0, or same_renoise=True"
            )
        if self.r1_noise and not self.r1_gamma:
            raise UserError(
                f"r1_noise is {self.r1_noise} and r1_gamma 0, so that there is no penalty: use a "
                f"noise of 0, or a gamma above 0"
            )
        for name in self.ramp.ramped:
            # The adversarial loss has no weight here, and terms of other packages have theirs
            # elsewhere.
            if not getattr(self, f"{name}_weight", 1):
                raise UserError(
                    f"ramp.{name} is {getattr(self.ramp, name)} and {name}_weight 0, which no "
                    f"factor changes: use a weight above 0, or factors of 1"
                )
        check_choice(self.accumulated_heads, "accumulated_heads", "updated", "before")
        check_numbers(
            self,
            {
                "head_updates": COUNT,
                "student_interval": COUNT,
                "refreshed_heads": SHARE,
                "r1_gamma": NOT_NEGATIVE,
                "r1_interval": COUNT,
                "r1_noise": NOT_NEGATIVE,
                "distillation_weight": NOT_NEGATIVE,
                "reconstruction_weight": NOT_NEGATIVE,
                "reconstruction_gamma": NOT_NEGATIVE,
                "paired_weight": NOT_NEGATIVE,
                "paired_share": SHARE,
                "moments_weight": NOT_NEGATIVE,
                "moments_t_hat": SHARE,
                "consistency_weight": NOT_NEGATIVE,
                "ema_decay": DECAY,
            },
        )

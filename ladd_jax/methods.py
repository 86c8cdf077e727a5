"""What there is to know of each way to make a student, by `distil.objective`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make a student.

    Attributes:
      title: its name in full.
      short: its name as people write it.
      has_heads: whether heads on a frozen teacher judge the student, and so whether the fields of
        these, and the terms of LADD's loss, mean anything.
    """

    title: str
    short: str
    has_heads: bool = False


METHODS = {
    "ladd": Method("Latent Adversarial Diffusion Distillation", "LADD", has_heads=True),
    "lcm": Method("Latent Consistency Distillation", "LCM"),
    "dmd": Method("Distribution Matching Distillation", "DMD"),
}

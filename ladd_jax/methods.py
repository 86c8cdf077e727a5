"""What the rest of the system must know about each way to make a student."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make a student.

    Attributes:
      title: its name in full.
      short: its name as people write it.
      has_heads: whether heads judge the student, so that their fields and the terms of LADD's loss
        mean something.
      in_pixels: whether the heads look at pictures, through another network than the teacher.
      sampler: the sampler of its students, a name of `SAMPLERS` of `diffusion.sampling`:
        `consistency`, or one whose steps are those that the student learned.
    """

    title: str
    short: str
    has_heads: bool = False
    in_pixels: bool = False
    sampler: str = "consistency"


METHODS = {
    "ladd": Method("Latent Adversarial Diffusion Distillation", "LADD", has_heads=True),
    "add": Method("Adversarial Diffusion Distillation", "ADD", has_heads=True, in_pixels=True),
    "lcm": Method("Latent Consistency Distillation", "LCM"),
    "dmd": Method("Distribution Matching Distillation", "DMD"),
    # Each step of its students ends where two of a teacher's steps of Euler do.
    "progressive": Method("Progressive Distillation", "PD", sampler="euler"),
}

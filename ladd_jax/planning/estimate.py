"""Memory and operations of a distillation step by formula, where there is no compiler to ask.

B images of a chip in a micro-batch, N image and T text tokens, D width, L blocks, P parameters.
"""

from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.objectives.ladd import LADD

_KEPT = {"full": 1, "attention": 2, "dots": 10, "dots_attention": 11, "none": 19}
"""Arrays `[B, N + T, D]` that the backward pass finds of each block: its input, the attention's
output, the results of matrix products (3 of queries, keys and values, 1 after the attention, 5 in
the MLP), and all else."""


def recomputed(remat: str, objective: LADD) -> float:
    """Operations over model FLOPs, by policy of rematerialisation.

    With `full` the student and the teacher on fakes run forth once more: 8 units for 6. With
    `attention` the products with weights do. What `dots` recomputes of these is element-wise.
    """
    units = sum(objective.forward_units)
    return (units + 2) / units if remat in ("full", "attention") else 1.0


def temporaries(
    student: MMDiTConfig,
    teacher: MMDiTConfig,
    objective: LADD,
    *,
    images: int,
    image_tokens: int,
    text_tokens: int,
    parameters: int,
    fsdp: int,
) -> float:
    """Bytes that a step needs on a chip besides its arguments, for fused attention.

    Most is held when the teacher's backward pass begins. In the dtype of computation of e bytes, D
    of the student, or of the teacher where it says:

        kept of each block of the student, k arrays by policy (`full` 1)     B (N + T) k D e
        the same of the teacher on fakes, whose block inputs are the heads'
        features, too                                                        B (N + T) k D e
        the gradients of the features, of each block of the teacher          B N D e
        the student's gradient in float32, which XLA may make room for early 4 P / fsdp
        one block at work: 24 arrays of D features, of the wider network     B (N + T) 24 D e
        the gradients' sum over several micro-batches                        4 P / fsdp
        parameters of two blocks, gathered                                   2 e P / L, with fsdp

    For SD3 on one and on eight GPUs between 8 and 20 per cent above what the compiler takes.

    Args:
      student: its network.
      teacher: that under the heads.
      objective: its micro-batches count.
      images: B, on one chip at a time.
      image_tokens: N.
      text_tokens: T.
      parameters: P, of the student.
      fsdp: chips that share the parameters.
    """
    tokens = images * (image_tokens + text_tokens)
    element = 2 if student.dtype.itemsize == 2 else 4

    def kept(network: MMDiTConfig) -> float:
        return network.blocks * tokens * _KEPT[network.remat] * network.width * element

    feature_gradient = teacher.blocks * images * image_tokens * teacher.width * element
    gradient = 4 * parameters / fsdp
    total = gradient if objective.accumulation > 1 else 0.0
    working = 24 * tokens * max(student.width, teacher.width) * element
    gathered = 2 * element * parameters / student.depth if fsdp > 1 else 0
    return kept(student) + kept(teacher) + feature_gradient + gradient + working + total + gathered

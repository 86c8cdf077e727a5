"""What configs of Stable Diffusion 3 and 3.5 set alike: the network, the data's shapes, the mesh.

"ours" marks what neither the paper nor the released pipelines state.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from ladd_jax.data.buckets import bucket_table
from ladd_jax.errors import UserError

# Esser et al. 2024 and the released configs: fields of the model by size.
SIZES: dict[str, dict[str, Any]] = {
    "medium": dict(depth=24, width=1536, num_heads=24, **{"position_start": -16.0}),
    "medium3.5": dict(
        depth=24, width=1536, num_heads=24, qk_norm=True, dual_attention=tuple(range(13)),
        position_table=384, position_base=96.0, position_start=-40.0,
    ),
    "large": dict(depth=38, width=2432, num_heads=38, qk_norm=True, position_start=-16.0),
}  # fmt: skip
"""Fields of `model`, by the size that a config's argument names."""

_PATCH, _REDUCTION = 2, 8


def use_pipeline(config: ConfigDict, size: str, weights: str) -> None:
    """Sets the network: that of the weights, or, without weights, one of a size, to plan with.

    Args:
      config: the config to change.
      size: one of `SIZES`, or `tiny`, for the size of tiny weights; empty: theirs, or medium.
      weights: a pipeline's folder or owner/name on the hub; or empty.

    Raises:
      UserError: there is no such size, or a tiny one has no weights.
    """
    config.model.position_base = config.teacher.position_base = 48.0
    config.data.update(dict(text_width=4096, pooled_width=2048))
    if size not in ("", "tiny", *SIZES):
        raise UserError(f"size {size!r} is not one of tiny, {', '.join(SIZES)}: use one of them")
    if size == "tiny" and not weights:
        raise UserError("size=tiny is what its weights are: give weights=DIR too")
    if weights:
        config.weights = weights
        # With weights, a depth of 0 takes theirs, and any other must be theirs.
        config.model.depth = SIZES[size]["depth"] if size in SIZES else 0
    else:
        config.model.update(SIZES[size or "medium"])


def use_resolution(config: ConfigDict, side: int) -> None:
    """Sets the buckets of a square's area, and how records are stored and programs are laid out.

    Args:
      config: the config to change.
      side: side of the square, in pixels.

    Raises:
      UserError: the network cannot make pictures of this side.
    """
    step = _PATCH * _REDUCTION if side < 512 else 64  # known above: multiples of 64
    if side < 2 * step or side % step:
        raise UserError(f"resolution {side} is not a multiple of {step}: use 1024, 512 or 256")
    config.data.update(
        dict(
            buckets=tuple(bucket.name for bucket in bucket_table(side * side, step)),  # ours
            records_per_shard=256,  # ours
            text_length=77 + 256,  # SD3's: CLIP's tokens, then T5's
            text_dtype="float16",  # ours
            text_batch_size=32,  # ours
        )
    )
    # Ours: sharded parameters and batch over all devices.
    config.mesh.update(dict(data=1, fsdp=-1))
    config.model.teacher_dtype = "bfloat16"  # ours
    # Ours: attention is a third of all operations, so its results are kept and not computed again.
    config.model.remat = "attention"


def tune_base(config: ConfigDict, steps: int) -> None:
    """Sets the fine-tuning of a released base, whose new zero weights learn to read what is joined.

    Args:
      config: the config to change.
      steps: number of its steps, a tenth of which are the warm-up.
    """
    config.pretrain.update(
        dict(
            steps=steps,  # ours
            batch_size=256,  # ours
            ema_decay=0.999,  # ours
            shift=3.0,  # SD3's
        )
    )
    # Ours.
    config.pretrain.optimizer.update(dict(learning_rate=3e-5, warmup_steps=math.ceil(steps / 10)))

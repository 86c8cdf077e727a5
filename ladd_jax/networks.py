"""Networks and objectives of a config: the one place that turns fields into objects."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ladd_jax.config import ConfigError
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.mmdit import MMDiTConfig, mmdit
from ladd_jax.objectives.base import Optimizer
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.objectives.ladd import LADD


def _dtype(name: str) -> Any:
    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype {name!r} is none of float32, bfloat16")
    return jnp.dtype(name)


def _fields(config: ConfigDict, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in left_out}


def transformer_config(config: ConfigDict) -> MMDiTConfig:
    """Architecture of teacher and student."""
    return MMDiTConfig(
        **_fields(config.model, "channels", "dtype", "param_dtype"),
        in_channels=config.model.channels,
        out_channels=config.model.channels,
        context_width=config.data.text_width,
        pooled_width=config.data.pooled_width,
        dtype=_dtype(config.model.dtype),
        param_dtype=_dtype(config.model.param_dtype),
    )


def flow_matching(config: ConfigDict) -> FlowMatching:
    """The teacher's training."""
    fields = _fields(config.pretrain, "steps", "batch_size", "optimizer")
    return FlowMatching(
        model=mmdit(transformer_config(config)),
        optimizer=Optimizer(**config.pretrain.optimizer),
        **fields,
    )


def ladd(config: ConfigDict) -> LADD:
    """The distillation."""
    transformer = transformer_config(config)
    head_config = HeadConfig(
        features=transformer.width,
        pooled_width=transformer.pooled_width,
        dtype=transformer.dtype,
        **_fields(config.heads),
    )
    model = mmdit(transformer)
    fields = _fields(
        config.distil, "steps", "batch_size", "optimizer", "heads_optimizer", "hooked_blocks"
    )
    hooked = tuple(config.distil.hooked_blocks) or None
    return LADD(
        student=model,
        teacher=model,
        head=head(head_config),
        heads=head_stack(head_config, len(set(hooked or range(transformer.depth)))),
        depth=transformer.depth,
        patch=transformer.patch,
        optimizer=Optimizer(**config.distil.optimizer),
        heads_optimizer=Optimizer(**config.distil.heads_optimizer),
        hooked_blocks=hooked,
        **fields,
    )

"""Networks and objectives of a config: the one place that turns fields into objects."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.quantized import check_installed
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.models.sd3.weights import read_mmdit_config
from ladd_jax.objectives.base import Objective
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.objectives.ladd import LADD
from ladd_jax.training.optimizers import Optimizer

# What weights decide; the other fields say how to compute.
_ARCHITECTURE = tuple(
    field.name
    for field in dataclasses.fields(MMDiTConfig)
    if field.name not in ("remat", "unroll", "cut", "quantized", "dtype", "param_dtype")
)


def _dtype(name: str, *others: str) -> Any:
    known = ("float32", "bfloat16")
    if name not in known:
        raise UserError(f"dtype {name!r} is none of {', '.join(known + others)}")
    return jnp.dtype(name)


def _fields(config: ConfigDict, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in left_out}


def transformer_config(config: ConfigDict) -> MMDiTConfig:
    """Architecture of the student, and of the network that it starts from."""
    return MMDiTConfig(
        **_fields(config.model, "channels", "dtype", "param_dtype", "teacher_dtype"),
        in_channels=config.model.channels,
        out_channels=config.model.channels,
        context_width=config.data.text_width,
        pooled_width=config.data.pooled_width,
        dtype=_dtype(config.model.dtype),
        param_dtype=_dtype(config.model.param_dtype),
    )


def teacher_config(config: ConfigDict) -> MMDiTConfig:
    """Architecture of the network that the student starts from and that makes its data.

    Frozen, its parameters may have a dtype of their own. Those of int8 are under the heads alone,
    and bfloat16 elsewhere.
    """
    name = config.model.teacher_dtype
    dtype = jnp.dtype(jnp.bfloat16) if name == "int8" else _dtype(name, "int8")
    return dataclasses.replace(transformer_config(config), param_dtype=dtype)


def discriminator_config(config: ConfigDict) -> MMDiTConfig:
    """Architecture of the teacher under the heads, as `distil` holds and runs it.

    It is that of `teacher_config`, or of the section `teacher`. It ends with the last hooked block
    where only blocks are read: without a distillation loss nothing asks for the velocity.

    Raises:
      UserError: the section `teacher` is incomplete, or what int8 needs is not installed.
    """
    teacher = teacher_config(config)
    if config.model.teacher_dtype == "int8":
        check_installed()
        teacher = dataclasses.replace(teacher, quantized=True)
    own = config.teacher
    if own.weights and not own.depth:
        raise UserError(
            f"teacher.weights is {own.weights} and teacher.depth is 0: set the sizes of that "
            f"network, as use_teacher_weights does"
        )
    if own.depth:
        for name in ("depth", "width", "num_heads", "patch", "mlp_ratio"):
            if own[name] < 1:
                raise UserError(
                    f"teacher.{name} is {own[name]} and teacher.depth is {own.depth}: use 1 or "
                    f"more, or a depth of 0 for the network that the student starts from"
                )
        teacher = dataclasses.replace(teacher, **_fields(own, "weights"))
    hooked = tuple(config.distil.hooked_blocks)
    inner = bool(hooked) and all(0 <= block < teacher.depth - 1 for block in hooked)
    if config.distil.distillation_weight or not inner:
        return teacher
    return dataclasses.replace(teacher, cut=max(hooked) + 1)


def use_weights(config: ConfigDict, weights: str) -> None:
    """Sets the teacher to released weights, and the model to their architecture."""
    architecture = read_mmdit_config(weights)
    config.weights = weights
    for name in _ARCHITECTURE:
        if name in config.model:
            config.model[name] = getattr(architecture, name)
    config.model.channels = architecture.out_channels
    config.data.text_width = architecture.context_width
    config.data.pooled_width = architecture.pooled_width


def use_teacher_weights(config: ConfigDict, weights: str) -> None:
    """Puts released weights under the heads, beside those that the student starts from.

    Raises:
      UserError: they are of other latents or of another text.
    """
    architecture = read_mmdit_config(weights)
    common = (
        ("channels of latents", architecture.in_channels, config.model.channels),
        ("channels of velocities", architecture.out_channels, config.model.channels),
        ("features of text tokens", architecture.context_width, config.data.text_width),
        ("features of the text vector", architecture.pooled_width, config.data.pooled_width),
    )
    for name, have, want in common:
        if have != want:
            raise UserError(
                f"the teacher {weights} has {have} {name} and the student {want}: use a teacher of "
                f"the same autoencoder and text encoders"
            )
    config.teacher.weights = weights
    for name in _ARCHITECTURE:
        if name in config.teacher:
            config.teacher[name] = getattr(architecture, name)


def architecture_difference(found: MMDiTConfig, wanted: MMDiTConfig) -> str:
    """The first difference between what weights are and what is wanted; empty for none."""
    for name in _ARCHITECTURE:
        have, want = getattr(found, name), getattr(wanted, name)
        if have != want:
            return f"{name} is {have} in the weights and {want} in the config"
    return ""


def _optimizer(config: ConfigDict) -> Optimizer:
    return Optimizer(**_fields(config, "moment_dtype"), moment_dtype=_dtype(config.moment_dtype))


def flow_matching(config: ConfigDict) -> FlowMatching:
    """The teacher's training."""
    fields = _fields(config.pretrain, "steps", "batch_size", "optimizer")
    return FlowMatching(
        model=mmdit(transformer_config(config)),
        optimizer=_optimizer(config.pretrain.optimizer),
        **fields,
    )


def ladd(config: ConfigDict) -> LADD:
    """The distillation."""
    transformer, discriminator = transformer_config(config), discriminator_config(config)
    head_config = HeadConfig(
        features=discriminator.width,
        condition_width=transformer.pooled_width,
        dtype=transformer.dtype,
        **_fields(config.heads),
    )
    fields = _fields(config.distil, "data", "steps", "batch_size", "optimizer", "heads_optimizer")
    teacher = mmdit(discriminator)
    hooked = tuple(config.distil.hooked_blocks)
    critic = FeatureCritic(
        teacher=teacher,
        head=head(head_config),
        heads=head_stack(head_config, len(set(hooked)) or teacher.blocks),
        hooked_blocks=hooked,
    )
    return LADD(
        student=mmdit(transformer),
        critic=critic,
        optimizer=_optimizer(config.distil.optimizer),
        heads_optimizer=_optimizer(config.distil.heads_optimizer),
        **fields,
    )


def model_flops(config: ConfigDict, objective: Objective, bucket: Bucket, cond: Any) -> int:
    """Model FLOPs that one step of an objective spends on each image of a bucket."""
    text_length = cond["context"].shape[-2]
    architectures = (transformer_config(config), discriminator_config(config))
    return sum(
        units * forward_flops(architecture, bucket.height, bucket.width, text_length)
        for units, architecture in zip(objective.forward_units, architectures, strict=True)
    )

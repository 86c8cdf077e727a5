"""Objectives of a config: what trains the data generator, what distils it, and their FLOPs."""

import dataclasses
from typing import Any

from ladd_jax.config.architectures import student_architecture, teacher_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.models.heads import HeadConfig, HeadSettings, head, head_stack
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.base import Objective
from ladd_jax.objectives.flow_matching import FlowMatching, FlowMatchingSettings
from ladd_jax.objectives.ladd import LADD, LADDSettings


def _settings(kind: type[Any], section: Any) -> dict[str, Any]:
    """The part of a section that is settings of an object."""
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(kind)}


def flow_matching(config: Config) -> FlowMatching:
    """The data generator's training."""
    return FlowMatching(
        model=mmdit(student_architecture(config)),
        optimizer=config.pretrain.optimizer,
        **_settings(FlowMatchingSettings, config.pretrain),
    )


def ladd(config: Config) -> LADD:
    """The distillation."""
    student, teacher = student_architecture(config), teacher_architecture(config)
    stage = config.distil
    head_config = HeadConfig(
        features=teacher.width,
        pooled_width=student.pooled_width,
        dtype=student.dtype,
        **_settings(HeadSettings, config.heads),
    )
    return LADD(
        student=mmdit(student),
        teacher=mmdit(teacher),
        head=head(head_config),
        heads=head_stack(head_config, len(set(stage.hooked_blocks or range(teacher.blocks)))),
        depth=teacher.blocks,
        patch=teacher.patch,
        optimizer=stage.optimizer,
        heads_optimizer=stage.heads_optimizer,
        **_settings(LADDSettings, stage),
    )


def model_flops(config: Config, objective: Objective, bucket: Bucket, text_length: int) -> int:
    """Model FLOPs that one step of an objective spends on each image of a bucket."""
    architectures = (student_architecture(config), teacher_architecture(config))
    return sum(
        units * forward_flops(architecture, bucket.height, bucket.width, text_length)
        for units, architecture in zip(objective.forward_units, architectures, strict=True)
    )

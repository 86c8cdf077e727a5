"""Objectives of a config: what trains the data generator, what distils it, and their FLOPs."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from ladd_jax.config.architectures import (
    asks_teacher,
    dino_architecture,
    generator_architecture,
    generator_tree,
    stage_architecture,
    start_architecture,
    start_tree,
    student_architecture,
    teacher_architecture,
)
from ladd_jax.config.fields import Config, Finetune, Pretrain
from ladd_jax.config.pretraining import settings_of
from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.samplers import linear_sigmas
from ladd_jax.errors import UserError
from ladd_jax.models.base import GUIDANCE, Backbone
from ladd_jax.models.dinov2 import Dinov2
from ladd_jax.models.families import family_of
from ladd_jax.models.heads import HeadConfig, HeadSettings, head, head_stack
from ladd_jax.models.layers import TIME_WIDTH
from ladd_jax.models.lora import BASE, Adapted
from ladd_jax.objectives.add import ADD
from ladd_jax.objectives.base import Objective, StudentObjective
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.critics.pixels import PixelCritic
from ladd_jax.objectives.dmd import DMD, DMDSettings
from ladd_jax.objectives.dpo import DPO, DPOSettings
from ladd_jax.objectives.flow_matching import FlowMatching, FlowMatchingSettings
from ladd_jax.objectives.followed import Followed
from ladd_jax.objectives.ladd import LADD
from ladd_jax.objectives.ladd_settings import LADDSettings
from ladd_jax.objectives.lcm import LCM
from ladd_jax.objectives.progressive import Progressive
from ladd_jax.objectives.terms.own import own_terms


def _settings(kind: type[Any], section: Any) -> dict[str, Any]:
    """The part of a section that is settings of an object."""
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(kind)}


def flow_matching(config: Config, stage: Pretrain | Finetune, training: str = "") -> FlowMatching:
    """The data generator's training, or the student's before the heads judge it.

    Args:
      config: the run's config.
      stage: the section with its settings.
      training: name of the training, where it trains a network of another size.
    """
    name = training or ("pretrain" if isinstance(stage, Pretrain) else "finetune")
    return FlowMatching(
        model=family_of(config).backbone(stage_architecture(config, name)),
        optimizer=stage.optimizer,
        **_settings(FlowMatchingSettings, stage),
    )


def preference(config: Config) -> DPO:
    """What `prefer` trains: adapters of the data generator.

    Raises:
      UserError: the network is impossible, or does not have the layers that adapters are for.
    """
    stage, base = config.prefer, family_of(config).backbone(generator_architecture(config))
    return DPO(
        model=Adapted(base, stage.lora, student_architecture(config).param_dtype),
        optimizer=stage.optimizer,
        **_settings(DPOSettings, stage),
    )


def student(config: Config) -> Backbone:
    """What `distil` trains: the whole network, or adapters of it.

    Raises:
      UserError: the network is impossible, or does not have the layers that adapters are for.
    """
    architecture, lora = student_architecture(config), config.distil.lora
    backbone = family_of(config).backbone
    if not lora.rank:
        return backbone(architecture)
    # A constant here, so it has the dtype of other constant networks.
    base = backbone(start_architecture(config))
    return Adapted(base, lora, architecture.param_dtype, start_tree(config))


def of_training(config: Config, training: str) -> Objective:
    """The objective of a training, by its name: a stage's, or one of `pretraining.NETWORKS`.

    Raises:
      UserError: see `preference` and `ladd`.
    """
    if training == "distil":
        return distillation(config)
    if training == "prefer":
        return preference(config)
    return flow_matching(config, settings_of(config, training), training)


def distillation(config: Config) -> StudentObjective:
    """The objective of the stage `distil`, which `distil.objective` names.

    Raises:
      UserError: see `ladd`.
    """
    return DISTILLATIONS[config.distil.objective](config)


def lcm(config: Config) -> LCM:
    """The baseline: consistency distillation, without heads.

    Raises:
      UserError: the network is impossible, or does not have the layers that adapters are for.
    """
    stage = config.distil
    return LCM(_consistency(config), stage.optimizer, stage.ema_decay)


def dmd(config: Config) -> DMD:
    """Distribution matching, with a network that learns the student's predictions.

    Raises:
      UserError: the network is impossible, or does not have the layers that adapters are for.
    """
    return DMD(
        student=student(config),
        followed=_followed(config),
        fake=family_of(config).backbone(student_architecture(config)),
        optimizer=config.distil.optimizer,
        heads_optimizer=config.distil.heads_optimizer,
        **_settings(DMDSettings, config.distil),
    )


def progressive(config: Config) -> Progressive:
    """Progressive distillation: half the steps in each phase, after one with guidance.

    Raises:
      UserError: the network is impossible, or does not have the layers that adapters are for.
    """
    stage = config.distil
    return Progressive(
        student=student(config),
        # Otherwise it would follow what `finetune` made, and begins as that.
        followed=_followed(config) if stage.follows == "generator" else None,
        optimizer=stage.optimizer,
        timesteps=stage.timesteps,
        halvings=stage.halvings,
        phase_steps=stage.phase_steps,
        shift=config.synthesize.shift,
        accumulation=stage.accumulation,
        ema_decay=stage.ema_decay,
    )


def _consistency(config: Config) -> Consistency:
    stage = config.distil
    return Consistency(
        student=student(config),
        followed=_followed(config),
        levels=linear_sigmas(stage.consistency_steps, config.synthesize.shift),
        solver=stage.consistency_solver,
        accumulation=stage.accumulation,
    )


def _followed(config: Config) -> Followed:
    backbone, generator = family_of(config).backbone, generator_architecture(config)
    if config.distil.follows == "generator":
        stage = config.synthesize
        return Followed(
            backbone(generator),
            generator_tree(config),
            stage.guidance_range or stage.guidance,
            stage.guidance_interval,
            stage.image_guidance_range or stage.image_guidance,
        )
    # A constant here, so it has the dtype of other constant networks.
    told, start = student_architecture(config), start_architecture(config)
    learned = dataclasses.replace(start, guided=told.guided, image_guided=told.image_guided)
    return Followed(backbone(learned), BASE)


def ladd(config: Config) -> LADD:
    """The paper's distillation.

    Raises:
      UserError: the network is impossible, or heads are on blocks that the teacher does not have.
    """
    stage = config.distil
    teacher = family_of(config).backbone(teacher_architecture(config))
    heads = _heads(config, teacher.width, teacher.summary_width)
    critic = FeatureCritic(
        teacher=teacher,
        head=head(heads),
        heads=head_stack(heads, len(set(stage.hooked_blocks)) or teacher.blocks),
        hooked_blocks=stage.hooked_blocks,
        guidance_ranges=config.synthesize.ranges,
    )
    return LADD(critic=critic, **adversarial(config))


def add(config: Config) -> ADD:
    """The paper's forerunner, with a critic in pixels.

    Where no autoencoder is named, latents of 1 or 3 channels are pictures, and others are those of
    the released pipelines.

    Raises:
      UserError: the network is impossible, the autoencoder cannot be used, or the resolution is not
        one of DINOv2's.
      NotFoundError: the autoencoder is not there.
    """
    family, dino = family_of(config), dino_architecture(config)
    blocks, place = config.dino.blocks, config.autoencoder
    decoder = None
    if place or config.model.channels not in (1, 3):
        decoder = family.picture_decoder(place, dino.dtype, dino.param_dtype)
        if decoder.channels != config.model.channels:
            raise UserError(
                f"model.channels is {config.model.channels} and the decoder's latents have "
                f"{decoder.channels}: name the autoencoder of these latents by data.autoencoder"
            )
    # It says what sums up the cond, which is the same for all networks.
    teacher = family.backbone(teacher_architecture(config))
    heads = _heads(config, dino.hidden_size, teacher.summary_width, told_noise=False)
    critic = PixelCritic(
        dino=Dinov2(dino),
        head=head(heads),
        heads=head_stack(heads, len(blocks)),
        hooked_blocks=blocks,
        resolution=config.dino.resolution,
        summary=teacher.summary_name,
        guidance_ranges=config.synthesize.ranges,
        decoder=decoder,
        teacher=teacher if asks_teacher(config) else None,
    )
    return ADD(critic=critic, **adversarial(config))


def _heads(config: Config, features: int, summary: int, *, told_noise: bool = True) -> HeadConfig:
    """A head on tokens of width `features`, told a vector of length `summary` for the cond."""
    return HeadConfig(
        features=features,
        condition_width=summary + TIME_WIDTH * len(config.synthesize.ranges),
        told_noise=told_noise,
        dtype=student_architecture(config).dtype,
        **_settings(HeadSettings, config.heads),
    )


def adversarial(config: Config) -> dict[str, Any]:
    """The fields of `LADD` except its critic, for objectives that have another one.

    Raises:
      UserError: see `student`.
    """
    stage = config.distil
    return {
        "student": student(config),
        "optimizer": stage.optimizer,
        "heads_optimizer": stage.heads_optimizer,
        "own_terms": own_terms(config),
        "consistency": _consistency(config) if stage.consistency_weight else None,
        **_settings(LADDSettings, stage),
    }


DISTILLATIONS: dict[str, Callable[[Config], StudentObjective]] = {
    "ladd": ladd,
    "add": add,
    "lcm": lcm,
    "dmd": dmd,
    "progressive": progressive,
}
"""What makes each objective, by its name in `distil.objective`; see `methods.METHODS`, too."""


def model_flops(
    config: Config, objective: Objective, bucket: Bucket, cond: Any, training: str = "distil"
) -> int:
    """Model FLOPs that one step of an objective spends on each image of a bucket.

    Args:
      config: the run's config.
      objective: one of its objectives.
      bucket: shape of the latents.
      cond: arrays of a condition, or their shapes and dtypes, with or without a batch.
      training: name of the objective's training.
    """
    flops = family_of(config).forward_flops
    student = stage_architecture(config, training)
    # The data generator is not told the guidance, and the data that it learns from have none.
    if GUIDANCE not in cond:
        student = dataclasses.replace(student, guided=False, image_guided=False)
    architectures = (student, teacher_architecture(config))
    total = sum(
        units * flops(architecture, bucket.height, bucket.width, cond)
        for units, architecture in zip(objective.forward_units, architectures, strict=True)
    )
    # The data generator's passes are among the student's, and it may be another network.
    if training == "distil" and config.student.depth and config.distil.follows == "generator":
        followed = generator_architecture(config)
        total += cast(StudentObjective, objective).followed_units * (
            flops(followed, bucket.height, bucket.width, cond)
            - flops(student, bucket.height, bucket.width, cond)
        )
    if isinstance(objective, LADD):
        units, passes = objective.critic_units, objective.critic.flops(bucket.height, bucket.width)
        total += sum(units[name] * count for name, count in passes.items())
    return round(total)

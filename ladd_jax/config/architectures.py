"""Architectures of the networks of a config: student, data generator and teacher."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ladd_jax.config.fields import Config, Model, Teacher
from ladd_jax.data.joined import JOINED, joined_channels
from ladd_jax.errors import UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.dinov2 import Dinov2Config
from ladd_jax.models.families import family_of, family_of_pipeline
from ladd_jax.models.lora import BASE
from ladd_jax.models.quantized import check_installed
from ladd_jax.objectives.terms import terms_of
from ladd_jax.objectives.terms.base import PREDICTED_X0
from ladd_jax.weights.dinov2 import OpenDinov2, open_dinov2

GENERATOR = "generator"
"""Name of the data generator's parameters among the frozen ones, where the teacher is another."""


def _fields(section: Model | Teacher, kind: Any) -> dict[str, Any]:
    """The fields of a section that an architecture has under the same name, but dtypes."""
    common = {field.name for field in dataclasses.fields(kind)}
    return {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.name in common and not field.name.endswith("dtype")
    }


def student_architecture(config: Config) -> Any:
    """Architecture of the student: an instance of its family's `architecture`."""
    kind = family_of(config).architecture
    return kind(
        **_fields(config.model, kind),
        in_channels=config.model.channels + joined_channels(config),
        out_channels=config.model.channels,
        context_width=config.data.text_width,
        pooled_width=config.data.pooled_width,
        guided=bool(config.synthesize.guidance_range),
        image_guided=bool(config.synthesize.image_guidance_range),
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
    )


def trained_generator_architecture(config: Config) -> Any:
    """Architecture of the data generator as `pretrain` trains it: it is guided by two passes, and
    never told by how much."""
    return dataclasses.replace(student_architecture(config), guided=False, image_guided=False)


def generator_architecture(config: Config) -> Any:
    """Architecture of the data generator, which is what the student starts from.

    Frozen, its parameters may have a dtype of their own. Those of int8 are under the heads alone,
    and bfloat16 elsewhere.
    """
    name = config.model.teacher_dtype
    dtype = jnp.dtype(jnp.bfloat16 if name == "int8" else name)
    return dataclasses.replace(trained_generator_architecture(config), param_dtype=dtype)


def weights_architecture(config: Config) -> Any:
    """Architecture of the network of `weights`, which may read fewer channels than the data
    generator that `pretrain` makes of it."""
    own = config.model.channels + config.model.joined_channels
    return dataclasses.replace(trained_generator_architecture(config), in_channels=own)


def teacher_architecture(config: Config) -> Any:
    """Architecture of the teacher under the heads, as `distil` holds and runs it.

    It is the data generator's, or that of the section `teacher`. It ends with the last hooked block
    where only blocks are read, because no term of the student's loss needs the velocity, nor a loss
    that follows the same network.

    Raises:
      UserError: what int8 needs is not installed.
    """
    teacher = generator_architecture(config)
    if not METHODS[config.distil.objective].has_heads:
        # Nothing stands on it, and it is followed as it is.
        return teacher
    if config.model.teacher_dtype == "int8":
        check_installed()
        teacher = dataclasses.replace(teacher, quantized=True)
    if config.teacher.depth:
        teacher = dataclasses.replace(teacher, **_fields(config.teacher, type(teacher)))
    hooked = config.distil.hooked_blocks
    inner = bool(hooked) and all(0 <= block < teacher.depth - 1 for block in hooked)
    if not inner or asks_teacher(config):
        return teacher
    follows = config.distil.consistency_weight and config.distil.follows == "generator"
    if follows and teacher == generator_architecture(config):
        # Whole, its tree is the data generator's, too.
        return teacher
    return dataclasses.replace(teacher, cut=max(hooked) + 1)


def dino_architecture(config: Config) -> Dinov2Config:
    """Architecture of the DINOv2 under the heads, up to the last block with one."""
    dino = config.dino
    return Dinov2Config(
        hidden_size=dino.width,
        num_hidden_layers=max(dino.blocks) + 1,
        num_attention_heads=dino.num_heads,
        mlp_ratio=dino.mlp_ratio,
        use_swiglu_ffn=dino.swiglu,
        image_size=dino.position_table * dino.patch,
        patch_size=dino.patch,
        num_register_tokens=dino.registers,
        dtype=student_architecture(config).dtype,
        # Frozen, as the teacher.
        param_dtype=generator_architecture(config).param_dtype,
    )


def stage_architecture(config: Config, stage: str) -> Any:
    """Architecture of what a training trains."""
    of_generator = stage in ("pretrain", "prefer")
    return (trained_generator_architecture if of_generator else student_architecture)(config)


def asks_teacher(config: Config) -> bool:
    """Whether a term of the student's loss asks for the teacher's own x_0."""
    return any(PREDICTED_X0 in term.needs for term in terms_of(config.distil))


def begins_as_teacher(config: Config) -> bool:
    """Whether the student begins as the teacher under the heads: one tree is both."""
    return generator_tree(config) == "teacher" and not config.finetune.steps


def start_tree(config: Config) -> str:
    """Name among the frozen trees of `distil` of what the student begins as, where it is among
    them: the data generator's, unless `finetune` has made another of it."""
    if begins_as_teacher(config):
        return "teacher"
    distil = config.distil
    followed = distil.asks_a_network and distil.follows == "generator"
    return GENERATOR if followed and not config.finetune.steps else BASE


def generator_tree(config: Config) -> str:
    """Name of the data generator's parameters among the frozen ones of `distil`: the teacher's,
    where the teacher is the data generator in the same form, and is among them."""
    if METHODS[config.distil.objective].in_pixels and not asks_teacher(config):
        return GENERATOR
    same = teacher_architecture(config) == generator_architecture(config)
    return "teacher" if same and not config.teacher.weights else GENERATOR


def read_architectures(config: ConfigDict) -> None:
    """Fills in what the files of `weights`, `teacher.weights`, `data.text` and `dino.weights` say
    of themselves.

    Fetches weights that are named by their place on the hub.

    Args:
      config: a run's config, changed here: the architecture in `model` and the widths of text in
        `data`, the section `teacher` where its depth is 0, and that of `dino` where it is used.

    Raises:
      NotFoundError: there are no such weights, or no such encoder as `data.text`.
      UserError: they are of no use, `model.depth` is neither 0 nor theirs, or the teacher is of
        other latents or of another text.
    """
    if config.weights:
        config.model.family = family_of_pipeline(config.weights).name
        found = family_of(config).open_weights(config.weights, jnp.bfloat16).config
        if config.model.depth not in (0, found.depth):
            raise UserError(
                f"model.depth is {config.model.depth} and the weights {config.weights} have "
                f"{found.depth} blocks: use 0 for theirs, and no size of another network"
            )
        _fill(config.model, config, found)
        config.model.channels = found.out_channels
        config.model.joined_channels = found.in_channels - found.out_channels
        config.data.text_width = found.context_width
        config.data.pooled_width = found.pooled_width
    if config.data.text:
        if config.weights:
            raise UserError(
                f"data.text is {config.data.text} and the weights {config.weights} read the text "
                f"of their own encoders: leave data.text out"
            )
        widths = family_of(config).text_widths(config.data.text)
        config.data.text_width, config.data.pooled_width = widths
    if config.teacher.weights and not config.teacher.depth:
        found = family_of(config).open_weights(config.teacher.weights, jnp.bfloat16).config
        _check_teacher(config, found)
        _fill(config.teacher, config, found)
    if config.dino.weights and METHODS[config.distil.objective].in_pixels:
        config.dino.update(dino_sizes(open_dinov2(config.dino.weights).config))


def open_dino(config: Config) -> OpenDinov2:
    """The files of the DINOv2 under the heads, checked and not read yet.

    Raises:
      NotFoundError: they are not there.
      UserError: they are damaged, or of another architecture than the config's.
    """
    weights = config.dino.weights
    opened = open_dinov2(weights)
    for name, have in dino_sizes(opened.config).items():
        want = getattr(config.dino, name)
        if have != want:
            raise UserError(
                f"the weights {weights} of DINOv2 do not fit the config: {name} is {have} in the "
                f"weights and {want} in the config; put back those of this run"
            )
    return opened


def dino_sizes(found: Dinov2Config) -> dict[str, Any]:
    """The fields of the section `dino` that its weights decide."""
    return {
        "depth": found.num_hidden_layers,
        "width": found.hidden_size,
        "num_heads": found.num_attention_heads,
        "mlp_ratio": found.mlp_ratio,
        "swiglu": found.use_swiglu_ffn,
        "patch": found.patch_size,
        "position_table": found.table,
        "registers": found.num_register_tokens,
    }


def _fill(section: ConfigDict, config: ConfigDict, found: Any) -> None:
    for name in family_of(config).weight_fields:
        if name in section:
            section[name] = getattr(found, name)


def _check_teacher(config: ConfigDict, found: Any) -> None:
    common = (
        ("channels of latents", found.out_channels, config.model.channels),
        ("features of text tokens", found.context_width, config.data.text_width),
        ("features of the text vector", found.pooled_width, config.data.pooled_width),
    )
    for name, have, want in common:
        if have != want:
            raise UserError(
                f"the teacher {config.teacher.weights} has {have} {name} and the student {want}: "
                f"use a teacher of the same autoencoder and text encoders"
            )
    if config.data.joined not in JOINED:
        # The section `data` refuses it, which is looked at later.
        return
    have, want = found.in_channels - found.out_channels, joined_channels(config)
    if have != want:
        named = f"data.joined is {config.data.joined!r}"
        if config.model.joined_channels and not config.data.joined:
            named = f"model.joined_channels is {config.model.joined_channels}"
        raise UserError(
            f"{named}, so that networks read {want} channels besides those of x_t, and the teacher "
            f"{config.teacher.weights} reads {have}: use a teacher that was trained for these, or "
            f"leave teacher.weights out, so that the data generator is the teacher"
        )


def architecture_difference(config: Config, found: Any, wanted: Any) -> str:
    """The first difference between what weights are and what is wanted; empty for none."""
    for name in family_of(config).weight_fields:
        have, want = getattr(found, name), getattr(wanted, name)
        if have != want:
            return f"{name} is {have} in the weights and {want} in the config"
    return ""

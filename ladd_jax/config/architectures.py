"""Architectures of the networks of a config: student, data generator and teacher."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ladd_jax.config.fields import Config, Model, OtherNetwork
from ladd_jax.config.pretraining import NETWORKS
from ladd_jax.data.joined import JOINED, joined_channels, kinds_of
from ladd_jax.errors import UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.dinov2 import Dinov2Config
from ladd_jax.models.families import family_of, family_of_pipeline, joined_of_pipeline
from ladd_jax.models.lora import BASE
from ladd_jax.models.quantized import check_installed
from ladd_jax.objectives.terms import terms_of
from ladd_jax.objectives.terms.base import PREDICTED_X0
from ladd_jax.objectives.terms.own import own_terms
from ladd_jax.weights.dinov2 import OpenDinov2, open_dinov2

GENERATOR = "generator"
"""Name of the data generator's parameters among the frozen ones, where the teacher is another."""


def _fields(section: Model | OtherNetwork, kind: Any) -> dict[str, Any]:
    """The fields of a section that an architecture has under the same name, except dtypes."""
    common = {field.name for field in dataclasses.fields(kind)}
    return {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.name in common and not field.name.endswith("dtype")
    }


def _own_fields(config: Config) -> dict[str, Any]:
    """The fields of an architecture that are in the section of `own` with its family's name."""
    section = getattr(config.own, config.model.family, None)
    if section is None:
        return {}
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def trained_generator_architecture(config: Config) -> Any:
    """Architecture of the data generator as `pretrain` trains it: it is guided by two passes and
    never told the scale. An instance of its family's `architecture`."""
    kind = family_of(config).architecture
    return kind(
        **_fields(config.model, kind),
        **_own_fields(config),
        in_channels=config.model.channels + joined_channels(config),
        out_channels=config.model.channels,
        context_width=config.data.text_width,
        pooled_width=config.data.pooled_width,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
    )


def trained_start_architecture(config: Config) -> Any:
    """Architecture of what the student starts from, as `pretrain` trains it: the data generator's,
    or that of the section `student`."""
    return _sized(trained_generator_architecture(config), config.student)


def student_architecture(config: Config) -> Any:
    """Architecture of the student, which may be told the guidance."""
    return dataclasses.replace(
        trained_start_architecture(config),
        guided=bool(config.synthesize.guidance_range),
        image_guided=bool(config.synthesize.image_guidance_range),
    )


def generator_architecture(config: Config) -> Any:
    """Architecture of the data generator where it is frozen; see `_frozen`."""
    return _frozen(trained_generator_architecture(config), config)


def start_architecture(config: Config) -> Any:
    """Architecture of what the student starts from where that is frozen, under adapters or because
    it is followed; see `_frozen`."""
    return _frozen(trained_start_architecture(config), config)


def _frozen(architecture: Any, config: Config) -> Any:
    """The architecture of a frozen network, whose parameters may have a dtype of their own.

    Only the teacher under the heads can be int8; elsewhere bfloat16 takes its place.
    """
    name = config.model.teacher_dtype
    dtype = jnp.dtype(jnp.bfloat16 if name == "int8" else name)
    return dataclasses.replace(architecture, param_dtype=dtype)


def _sized(architecture: Any, section: OtherNetwork) -> Any:
    """An architecture with the fields of a section that describes another one, where it does."""
    if not section.depth:
        return architecture
    return dataclasses.replace(architecture, **_fields(section, type(architecture)))


def weights_architecture(config: Config) -> Any:
    """Architecture of the network of `weights`, which may read fewer channels than the data
    generator that `pretrain` makes of it."""
    own = config.model.channels + config.model.joined_channels
    return dataclasses.replace(trained_generator_architecture(config), in_channels=own)


def teacher_architecture(config: Config) -> Any:
    """Architecture of the teacher under the heads, as `distil` holds and runs it.

    It is the data generator's, or that of the section `teacher`. It ends with the last hooked block
    where only blocks are read: no term of the student's loss needs the velocity, and no loss
    follows the same network.

    Raises:
      UserError: what int8 needs is not installed.
    """
    teacher = generator_architecture(config)
    if not METHODS[config.distil.objective].has_heads:
        # No heads read it, and it is followed as it is.
        return teacher
    if config.model.teacher_dtype == "int8":
        check_installed()
        teacher = dataclasses.replace(teacher, quantized=True)
    teacher = _sized(teacher, config.teacher)
    hooked = config.distil.hooked_blocks
    inner = bool(hooked) and all(0 <= block < teacher.depth - 1 for block in hooked)
    if not inner or asks_teacher(config):
        return teacher
    follows = config.distil.consistency_weight and config.distil.follows == "generator"
    if follows and teacher == generator_architecture(config):
        # Kept whole, so that one tree serves as the data generator's, too.
        return teacher
    return dataclasses.replace(teacher, cut=max(hooked) + 1)


def dino_architecture(config: Config) -> Dinov2Config:
    """Architecture of the DINOv2 under the heads, up to the last block with a head."""
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
    """Architecture of what a training trains, by the training's name."""
    if stage in NETWORKS:
        section = getattr(config, NETWORKS[stage])
        return _sized(trained_generator_architecture(config), section)
    of_generator = stage in ("pretrain", "prefer")
    return (trained_generator_architecture if of_generator else student_architecture)(config)


def asks_teacher(config: Config) -> bool:
    """Whether a term of the student's loss asks for the teacher's own x_0."""
    terms = terms_of(config.distil) + own_terms(config)
    return any(PREDICTED_X0 in term.needs for term in terms)


def begins_as_teacher(config: Config) -> bool:
    """Whether the student begins as the teacher under the heads, so that one tree is both."""
    return generator_tree(config) == "teacher" and not _starts_apart(config)


def start_tree(config: Config) -> str:
    """Name of the tree that the student begins as among the frozen trees of `distil`, if it is one
    of them: the data generator's, unless `finetune` changed it or the student has a start of its
    own."""
    if begins_as_teacher(config):
        return "teacher"
    distil = config.distil
    followed = distil.asks_a_network and distil.follows == "generator"
    return GENERATOR if followed and not _starts_apart(config) else BASE


def _starts_apart(config: Config) -> bool:
    """Whether the student begins as another network than the data generator."""
    return bool(config.finetune.steps or config.student.depth)


def generator_tree(config: Config) -> str:
    """Name of the data generator's parameters among the frozen ones of `distil`: the teacher's, if
    the teacher is the data generator in the same form and is one of them."""
    if METHODS[config.distil.objective].in_pixels and not asks_teacher(config):
        return GENERATOR
    # A teacher with a depth of its own has other parameters, even of the same architecture.
    own = config.teacher.weights or config.teacher.depth
    same = teacher_architecture(config) == generator_architecture(config)
    return "teacher" if same and not own else GENERATOR


def read_architectures(config: ConfigDict) -> None:
    """Fills in what the files of `weights`, `teacher.weights`, `data.text` and `dino.weights` say
    about themselves, and what networks of other sizes take from `model`.

    Fetches weights that are named by their place on the hub.

    Args:
      config: a run's config, changed here: the architecture in `model` and its family's section of
        `own`, and the widths of text in `data`, the section `teacher` where its depth is 0, and
        that of `dino` where it is used; and `student` and `teacher` where they have a depth, no
        weights, and `num_heads` 0.

    Raises:
      NotFoundError: there are no such weights, or no such encoder as `data.text`.
      UserError: the weights cannot be used, `model.depth` is neither 0 nor theirs, the teacher
        reads other latents or another text, or a width is not a multiple of the width of the
        model's heads.
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
        if own := config.own.get(config.model.family):
            _fill(own, config, found)
        config.model.channels = found.out_channels
        config.model.joined_channels = found.in_channels - found.out_channels
        _check_kind(config)
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
    for name in NETWORKS.values():
        section = config[name]
        if section.depth > 0 and not section.num_heads and not section.get("weights"):
            _complete(config.model, section, name)


def _check_kind(config: ConfigDict) -> None:
    """Raises UserError where weights read as many channels as the data join, and other things."""
    kinds = kinds_of(config.model.joined_channels, config.model.channels)
    # One kind is told by its number already, in the checks of the whole config.
    if config.data.joined not in kinds or len(kinds) < 2:
        return
    said = joined_of_pipeline(config.weights)
    if said in kinds and said != config.data.joined:
        raise UserError(
            f"weights is {config.weights}, which read {JOINED[said].words}, and data.joined is "
            f"{config.data.joined!r}: set it to {said}, or use other weights"
        )


def _complete(model: ConfigDict, section: ConfigDict, name: str) -> None:
    """Fills in a section that has a depth, and perhaps a width: all else is as in `model`."""
    if model.num_heads < 1:
        # The check of the section `model` refuses it.
        return
    if model.width % model.num_heads:
        raise UserError(
            f"model.width {model.width} is not divisible by model.num_heads {model.num_heads}: use "
            f"those of one network"
        )
    of_head, width = model.width // model.num_heads, section.width or model.width
    if width % of_head:
        raise UserError(
            f"{name}.width is {width} and {name}.num_heads 0, which takes heads of width {of_head} "
            f"from the model: use a multiple of {of_head}, or give {name}.num_heads and the other "
            f"fields of that network"
        )
    section.update(
        {field: model[field] for field in section if field in model and field != "depth"}
    )
    section.update(dict(width=width, num_heads=width // of_head))
    section.dual_attention = tuple(b for b in model.dual_attention if b < section.depth)


def check_like_model(config: ConfigDict, path: str, given: object) -> None:
    """Raises UserError if a field of a network without weights was given a value, and that of
    `model` took its place.

    Args:
      config: a config that `read_architectures` has completed.
      path: path of the field.
      given: the value that it was given.
    """
    section, _, name = path.rpartition(".")
    if section in NETWORKS.values() and not config[section].get("weights"):
        raise UserError(
            f"{path} is {given} and {section}.num_heads 0, which takes {config[section][name]} "
            f"from `model` instead: leave it out, or give {section}.num_heads and the other fields "
            f"of that network"
        )


def open_dino(config: Config) -> OpenDinov2:
    """The files of the DINOv2 under the heads, checked but not read yet.

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
        # The check of the section `data` comes later and refuses it.
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

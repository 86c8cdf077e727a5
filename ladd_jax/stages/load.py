"""Loads the networks that a student is made from: data generator, teacher, and its own start."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config
from ladd_jax.config.pretraining import (
    NETWORKS,
    further_trainings,
    settings_of,
    stage_of,
    trainings_of_sections,
)
from ladd_jax.config.workdir import first_run, folder
from ladd_jax.data.joined import pretrains
from ladd_jax.data.shards import Shards
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import Params
from ladd_jax.models.dinov2 import Dinov2
from ladd_jax.models.families import Family, family_of
from ladd_jax.models.lora import BASE, Adapted, add_adapters
from ladd_jax.models.quantized import quantize_params
from ladd_jax.objectives.critics.pixels import DECODER, DINO
from ladd_jax.parallel.mesh import lay, parameter_shardings, replicated
from ladd_jax.stages.checkpoints import finished_checkpoints
from ladd_jax.training.checkpoint import Checkpoints, newest_config
from ladd_jax.training.state import abstract_like
from ladd_jax.weights.fingerprint import TRANSFORMER, fingerprint, fingerprints
from ladd_jax.weights.lora import AddedLoRA, lora_files
from ladd_jax.weights.source import LORA_WEIGHTS


def load_generator(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The data generator's parameters, on a mesh.

    They are those of `weights`, or the average of `pretrain` if that stage makes them, with the
    LoRA of `prefer` added if the config applies it before distillation.

    Raises:
      NotFoundError: an earlier stage is not done, or the weights are not there.
      UserError: the weights are damaged, or do not have the config's architecture.
    """
    return _load_generator_as(config, workdir, mesh, architectures.generator_architecture(config))


def load_generator_before(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The data generator before `prefer`; see `load_generator`."""
    return _load_before_as(config, workdir, mesh, architectures.generator_architecture(config))


def _load_generator_as(config: Config, workdir: Path, mesh: Mesh, architecture: Any) -> Params:
    taught = preference_loras(config, workdir) if config.prefer.before else ()
    return _load_before_as(config, workdir, mesh, architecture, taught)


def _load_before_as(
    config: Config, workdir: Path, mesh: Mesh, architecture: Any, taught: Sequence[str] = ()
) -> Params:
    if not pretrains(config):
        added = open_loras(family_of(config), architecture, (*config.loras, *taught))
        return added(_read(config, config.weights, architecture, mesh))
    # `config.loras` are not added here, since `pretrain` began with weights that have them.
    added = open_loras(family_of(config), architecture, taught)
    return added(_pretrained_as("pretrain", config, workdir, mesh, architecture))


def _pretrained_as(
    training: str, config: Config, workdir: Path, mesh: Mesh, architecture: Any
) -> Params:
    """The result of a training of `pretrain`, with the cut and the dtype of an architecture."""
    params = _matched(training, config, workdir, mesh)
    if architecture.cut:
        family = family_of(config)
        model = family.backbone(architecture)
        layout = parameter_shardings(mesh, model.shapes, model.axes)
        keep = jax.jit(lambda tree: family.cut_params(tree, model.shapes), out_shardings=layout)
        params = keep(params)
    return jax.tree.map(lambda leaf: leaf.astype(architecture.param_dtype), params)


def load_unfinetuned(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network that the student starts from before `finetune`, on a mesh.

    It is the data generator, or the network of the section `student` that `pretrain` has trained.

    Raises:
      NotFoundError: see `load_generator`.
      UserError: see `load_generator`.
    """
    if not config.student.depth:
        return load_generator(config, workdir, mesh)
    architecture = architectures.start_architecture(config)
    return _pretrained_as("pretrain_student", config, workdir, mesh, architecture)


def load_widened(config: Config, mesh: Mesh) -> Params:
    """The network of `weights`, on a mesh, widened to also read the channels that the data join.

    Its output is the same as before, whatever these channels hold. `pretrain` begins with it.

    Raises:
      NotFoundError: the weights are not there.
      UserError: they are damaged, or do not have the config's architecture.
    """
    family, own = family_of(config), architectures.weights_architecture(config)
    added = open_loras(family, own, config.loras)
    params = added(_read(config, config.weights, own, mesh))
    architecture = architectures.trained_generator_architecture(config)
    model = family.backbone(architecture)
    layout = parameter_shardings(mesh, model.shapes, model.axes)
    widen = jax.jit(lambda tree: family.widened(tree, architecture), out_shardings=layout)
    return widen(params)


def preference_file(workdir: Path) -> Path:
    """The path of the LoRA that `prefer` writes."""
    return folder(workdir, "prefer") / "lora" / LORA_WEIGHTS


def preference_loras(config: Config, workdir: Path) -> tuple[str, ...]:
    """The LoRA that `prefer` wrote, as a list for `open_loras`; raises if the stage is not done."""
    finished_checkpoints(config, workdir, "prefer", config.prefer.steps).close()
    file = preference_file(workdir)
    if not file.is_file():
        raise NotFoundError(
            f"{file} is not there: run the stage 'prefer' again, which writes it from its "
            f"checkpoint"
        )
    return (str(file),)


def load_adapters(
    config: Config, workdir: Path, network: Adapted, sharding: jax.sharding.Sharding
) -> Params:
    """The average of the adapters that `prefer` has trained.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      network: the adapted network.
      sharding: sharding of each adapter.

    Raises:
      NotFoundError: `prefer` is not done.
    """
    saved = finished_checkpoints(config, workdir, "prefer", config.prefer.steps)
    layout = jax.tree.map(lambda _: sharding, network.shapes)
    return _average(saved, network.shapes, layout, config.prefer.steps)


def _matched(stage: str, config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The average from a training by flow matching, without the rest of its state.

    For a run that began from another run's student it may come from the first of these runs,
    whatever data that run has.
    """
    settings = settings_of(config, stage)
    model = objectives.flow_matching(config, settings, stage).model
    layout = parameter_shardings(mesh, model.shapes, model.axes)
    if stage in needed_of_first(config) and (first := first_run(workdir)) != workdir:
        first_made(first, stage, workdir)
        saved = Checkpoints(first / stage / "checkpoints")
        return _average(saved, model.shapes, layout, None)
    saved = finished_checkpoints(config, workdir, stage, settings.steps)
    return _average(saved, model.shapes, layout, settings.steps)


def _average(saved: Checkpoints, shapes: Params, layout: Params, step: int | None) -> Params:
    """The average in a training's checkpoint, by default the newest, placed by `layout`."""
    average = saved.restore_tree("ema", abstract_like(shapes, layout), saved.find(step))
    saved.close()
    return average


def load_finetuned(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network that `finetune` has made from the student's start, on a mesh.

    A run that began from another run's student is not fine-tuned itself: it uses the network that
    the first of these runs made.

    Raises:
      NotFoundError: `finetune` is not done.
    """
    return _matched("finetune", config, workdir, mesh)


def first_inputs(config: Config, workdir: Path, *, start: bool = False) -> dict[str, str]:
    """Digests of the networks that this run needs and the first run has trained.

    The first run is the one at the beginning of a chain of runs by --from. Digests are by their
    names among inputs, and empty if the first run is this one.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      start: whether to look only at the network that the student adapts or follows.

    Raises:
      NotFoundError: one of the networks is gone.
    """
    first = first_run(workdir)
    if first == workdir:
        return {}
    found = {}
    for name in needed_of_first(config, start=start):
        newest = first_made(first, name, workdir)
        digest = hashlib.sha256(json.dumps(newest, sort_keys=True).encode())
        found[f"{name} of the first run"] = digest.hexdigest()[:16]
    return found


def needed_of_first(config: Config, *, start: bool = False) -> tuple[str, ...]:
    """The trainings of the first run whose results a run that began from it needs.

    They are those of networks of other sizes, and `finetune`; see `first_inputs`.
    """
    found: tuple[str, ...] = ()
    if config.distil.needs_start and config.finetune.steps:
        found = ("finetune",)
    elif config.distil.needs_start and config.student.depth:
        found = ("pretrain_student",)
    return found if start else tuple(dict.fromkeys((*further_trainings(config), *found)))


def first_made(first: Path, training: str, workdir: Path) -> tuple[int, dict[str, Any]]:
    """The step and the config of the newest checkpoint of a training.

    Args:
      first: workdir of the run that trained.
      training: name of the training.
      workdir: workdir of the run whose student began with the result, for messages.

    Raises:
      NotFoundError: there is no checkpoint any more.
    """
    newest = newest_config(first / training / "checkpoints")
    if newest is None:
        reason = f"which the student of {workdir} began with"
        if training in NETWORKS:
            section = NETWORKS[training]
            reason = f"which trains the {section}'s network for runs that begin from it"
        raise NotFoundError(
            f"{first} has nothing of its stage {stage_of(training)!r}, {reason}: put it back, or "
            f"start over without --from"
        )
    return newest


def load_start(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network that the student begins with, on a mesh, fine-tuned if the config says so.

    Raises:
      NotFoundError: an earlier stage is not done, or the weights are not there.
      UserError: the weights are damaged, or do not have the config's architecture.
    """
    if config.finetune.steps:
        return load_finetuned(config, workdir, mesh)
    return load_unfinetuned(config, workdir, mesh)


def load_base(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network of `load_start` as the base of adapters, in the dtype of constant networks.

    Raises:
      NotFoundError: see `load_start`.
      UserError: see `load_start`.
    """
    dtype = architectures.start_architecture(config).param_dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), load_start(config, workdir, mesh))


def load_teacher(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The teacher under the heads, as `teacher_architecture` describes it.

    Raises:
      NotFoundError: `pretrain` is not done, or the weights are not there.
      UserError: the weights are damaged, or do not have the config's architecture.
    """
    architecture = architectures.teacher_architecture(config)
    source = architecture
    if architecture.quantized:
        source = dataclasses.replace(architecture, quantized=False, param_dtype=jnp.float32)
    if config.teacher.weights:
        params = _read(config, config.teacher.weights, source, mesh)
    elif config.teacher.depth:
        training = trainings_of_sections(config)["teacher"]
        params = _pretrained_as(training, config, workdir, mesh, source)
    else:
        params = _load_generator_as(config, workdir, mesh, source)
    if not architecture.quantized:
        return params
    return quantize_params(family_of(config).backbone(architecture), params, mesh)


def load_dino(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The DINOv2 under the heads, up to the last block that has a head.

    Raises:
      NotFoundError: the weights are not there.
      UserError: they are damaged, or do not have the config's architecture.
    """
    network = Dinov2(architectures.dino_architecture(config))
    return architectures.open_dino(config).load(network, mesh)


def load_decoder(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The decoder of the run's autoencoder.

    Raises:
      NotFoundError: there is none.
      UserError: it is damaged.
    """
    family, dino = family_of(config), architectures.dino_architecture(config)
    decoder = family.picture_decoder(config.autoencoder, dino.dtype, dino.param_dtype)
    return family.load_decoder(config.autoencoder, decoder, mesh)


FROZEN: dict[str, Callable[[Config, Path, Mesh], Params]] = {
    "teacher": load_teacher,
    architectures.GENERATOR: load_generator,
    BASE: load_base,
    DINO: load_dino,
    DECODER: load_decoder,
}
"""Loaders of the networks that a distillation reads and never changes, by the name of the tree:
`load(config, workdir, mesh)` gives the parameters, placed on the mesh."""


def load_frozen(
    config: Config, workdir: Path, mesh: Mesh, names: Collection[str], shards: Shards
) -> dict[str, Any]:
    """The trees that a distillation reads and never changes, by name.

    If teacher, data generator and student's base are the same network, they share one tree.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      mesh: mesh to put the trees on.
      names: names of the networks, from `StudentObjective.networks`.
      shards: the data; the cond of their empty prompt becomes the tree `null`.

    Raises:
      NotFoundError: an earlier stage is not done, or weights are not there.
      UserError: weights are damaged or do not have the config's architecture, or `FROZEN` has no
        loader for a network.
    """
    for name in names:
        if name not in FROZEN:
            raise UserError(
                f"the distillation {config.distil.objective!r} reads a network {name!r}, which is "
                f"not one of {', '.join(FROZEN)}: add its loader to FROZEN in stages/load.py"
            )
    frozen: dict[str, Any] = {name: FROZEN[name](config, workdir, mesh) for name in names}
    whole = replicated(mesh)
    return frozen | {"null": {name: lay(array, whole) for name, array in shards.null.items()}}


def _read(config: Config, weights: str, architecture: Any, mesh: Mesh) -> Params:
    checkpoint = family_of(config).open_weights(weights, architecture.param_dtype)
    difference = architectures.architecture_difference(config, checkpoint.config, architecture)
    if difference:
        raise UserError(f"the weights {weights} do not fit the config: {difference}")
    return checkpoint.cut(architecture.cut).load(mesh)


def open_loras(
    family: Family, architecture: Any, loras: Sequence[str]
) -> Callable[[Params], Params]:
    """A function that adds LoRA files to parameters; the files are checked before it is returned.

    The function may free the parameters that it is given.

    Args:
      family: the family of the network.
      architecture: architecture of the network.
      loras: `PATH` or `PATH:SCALE` each.

    Raises:
      NotFoundError: a file is not there.
      UserError: a file is not of this network.
    """
    named = [AddedLoRA.parse(text) for text in loras]
    opened = [(family.open_lora(lora.place, architecture), lora.scale) for lora in named]
    return lambda params: add_adapters(params, [(lora.load(), scale) for lora, scale in opened])


def weights_inputs(config: Config) -> dict[str, str]:
    """Fingerprints of the files that `weights` and `loras` name, except for those on the hub."""
    found = fingerprints("weights", config.weights, TRANSFORMER)
    for text in config.loras:
        place = AddedLoRA.parse(text).place
        if parts := [fingerprint(str(file), ()) for file in lora_files(place)]:
            found[f"loras: {place}"] = " ".join(parts)
    return found

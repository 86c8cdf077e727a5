"""The networks that a student is made from: data generator, teacher, what it begins as."""

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
    """The data generator, on a mesh: parameters of `weights`, or the average of `pretrain` where
    that makes it, with what `prefer` has made of them.

    Raises:
      NotFoundError: a stage before is not done, or the weights are not there.
      UserError: the weights are damaged, or of another architecture than the config's.
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
    # What `pretrain` began with has the others.
    added = open_loras(family_of(config), architecture, taught)
    return added(_pretrained_as("pretrain", config, workdir, mesh, architecture))


def _pretrained_as(
    training: str, config: Config, workdir: Path, mesh: Mesh, architecture: Any
) -> Params:
    """What a training of `pretrain` has made, as it is cut and in the dtype of an architecture."""
    params = _matched(training, config, workdir, mesh)
    if architecture.cut:
        family = family_of(config)
        model = family.backbone(architecture)
        layout = parameter_shardings(mesh, model.shapes, model.axes)
        keep = jax.jit(lambda tree: family.cut_params(tree, model.shapes), out_shardings=layout)
        params = keep(params)
    return jax.tree.map(lambda leaf: leaf.astype(architecture.param_dtype), params)


def load_unfinetuned(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """What the student starts from before `finetune`, on a mesh: the data generator, or the network
    of the section `student` as `pretrain` has made it.

    Raises:
      NotFoundError: see `load_generator`.
      UserError: see `load_generator`.
    """
    if not config.student.depth:
        return load_generator(config, workdir, mesh)
    architecture = architectures.start_architecture(config)
    return _pretrained_as("pretrain_student", config, workdir, mesh, architecture)


def load_widened(config: Config, mesh: Mesh) -> Params:
    """The network of `weights`, on a mesh, that reads the channels that the data join, too.

    It does what it did before, whatever they are: `pretrain` begins with it.

    Raises:
      NotFoundError: the weights are not there.
      UserError: they are damaged, or of another architecture than the config's.
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
    """The LoRA that `prefer` writes."""
    return folder(workdir, "prefer") / "lora" / LORA_WEIGHTS


def preference_loras(config: Config, workdir: Path) -> tuple[str, ...]:
    """That LoRA, once the stage is done."""
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
      sharding: of each of them.

    Raises:
      NotFoundError: `prefer` is not done.
    """
    saved = finished_checkpoints(config, workdir, "prefer", config.prefer.steps)
    layout = jax.tree.map(lambda _: sharding, network.shapes)
    return _average(saved, network.shapes, layout, config.prefer.steps)


def _matched(stage: str, config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The average that a training of flow matching has made, without the rest of its state.

    Of a run that began from another one's student it may be the first run's, whatever data that one
    has.
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
    """The average of what a training trains, laid as is said; default: of its newest checkpoint."""
    average = saved.restore_tree("ema", abstract_like(shapes, layout), saved.find(step))
    saved.close()
    return average


def load_finetuned(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """What `finetune` has made of what the student starts from, on a mesh.

    A run that began from another is not fine-tuned itself: it has what the first of them made.

    Raises:
      NotFoundError: `finetune` is not done.
    """
    return _matched("finetune", config, workdir, mesh)


def first_inputs(config: Config, workdir: Path, *, start: bool = False) -> dict[str, str]:
    """Digests of what the first run has trained and this one needs, by their names among inputs;
    empty where that run is this one.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      start: whether only what the student is adapters of, or follows, is looked at.

    Raises:
      NotFoundError: something of it is gone.
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
    """The trainings of the first run whose results a run that began from it needs: networks of
    other sizes, and what it fine-tuned; see `first_inputs`."""
    found: tuple[str, ...] = ()
    if config.distil.needs_start and config.finetune.steps:
        found = ("finetune",)
    elif config.distil.needs_start and config.student.depth:
        found = ("pretrain_student",)
    return found if start else tuple(dict.fromkeys((*further_trainings(config), *found)))


def first_made(first: Path, training: str, workdir: Path) -> tuple[int, dict[str, Any]]:
    """Of what a run has trained the step and the config of the newest checkpoint.

    Args:
      first: the run's workdir.
      training: name of the training.
      workdir: that of the run whose student began as it.

    Raises:
      NotFoundError: it is gone.
    """
    newest = newest_config(first / training / "checkpoints")
    if newest is None:
        reason = f"which the student of {workdir} began as"
        if training in NETWORKS:
            section = NETWORKS[training]
            reason = f"which trains the {section}'s network that a run begun from it needs"
        raise NotFoundError(
            f"{first} has nothing of its stage {stage_of(training)!r}, {reason}: put it back, or "
            f"begin anew without --from"
        )
    return newest


def load_start(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network that the student begins as, on a mesh: what it starts from, or what `finetune`
    has made of that.

    Raises:
      NotFoundError: a stage before is not done, or the weights are not there.
      UserError: the weights are damaged, or of another architecture than the config's.
    """
    if config.finetune.steps:
        return load_finetuned(config, workdir, mesh)
    return load_unfinetuned(config, workdir, mesh)


def load_base(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The same as adapters need it: constant, in the dtype of constant networks.

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
      UserError: the weights are damaged, or of another architecture than the config's.
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
    """The DINOv2 under the heads, up to the last block with one.

    Raises:
      NotFoundError: the weights are not there.
      UserError: they are damaged, or of another architecture than the config's.
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
"""What gives the parameters of a network that a distillation reads and never changes, by the name
of its tree: `load(config, workdir, mesh)`, laid on the mesh."""


def load_frozen(
    config: Config, workdir: Path, mesh: Mesh, names: Collection[str], shards: Shards
) -> dict[str, Any]:
    """The trees that a distillation reads and never changes, by name.

    The teacher's tree is also the data generator's, and the student's base, where they are one.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      mesh: mesh that they are put on.
      names: of `StudentObjective.networks`.
      shards: the data, which have the cond of the empty prompt, the tree `null`.

    Raises:
      NotFoundError: a stage before is not done, or weights are not there.
      UserError: weights are damaged, or of another architecture than the config's; or no way is
        known to load a network.
    """
    for name in names:
        if name not in FROZEN:
            raise UserError(
                f"the distillation {config.distil.objective!r} reads a network {name!r}, which is "
                f"none of {', '.join(FROZEN)}: give FROZEN of stages/load.py what loads it"
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
    """What adds LoRA files to parameters, which then may be gone; the files are checked at once.

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
    """Fingerprints of the files that `weights` and `loras` name, as far as they are here."""
    found = fingerprints("weights", config.weights, TRANSFORMER)
    for text in config.loras:
        place = AddedLoRA.parse(text).place
        if parts := [fingerprint(str(file), ()) for file in lora_files(place)]:
            found[f"loras: {place}"] = " ".join(parts)
    return found

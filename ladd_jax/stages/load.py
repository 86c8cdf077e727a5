"""What the stages of a run have left in its workdir: shards, checkpoints, networks."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import difference, identity, own_fields
from ladd_jax.config.workdir import first_run, folder
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import is_complete, read_identity
from ladd_jax.data.shards import Shards
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import OTHER, PREFERENCE, Backbone, Params
from ladd_jax.models.families import Family, family_of
from ladd_jax.models.lora import BASE, Adapted, add_adapters
from ladd_jax.models.quantized import quantize_params
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import lay, parameter_shardings, replicated
from ladd_jax.stages.names import STUDENTS
from ladd_jax.training.checkpoint import Checkpoints, newest_config
from ladd_jax.training.program import distillation_layout
from ladd_jax.training.state import abstract_like
from ladd_jax.weights.fingerprint import TRANSFORMER, fingerprint, fingerprints
from ladd_jax.weights.lora import AddedLoRA, lora_files
from ladd_jax.weights.source import LORA_WEIGHTS

_LOG = getLogger(__name__)


def encoded(workdir: Path) -> Path:
    """Shards of real data."""
    return folder(workdir, "encoded")


def held_out(workdir: Path) -> Path:
    """Shards of real data for judges: the same arrays as in `encoded`, and none of its records."""
    return folder(workdir, "held_out")


def synthesized(workdir: Path) -> Path:
    """Shards of the data generator's samples."""
    return folder(workdir, "synthesized")


def shards_of(config: Config, workdir: Path, name: str, *, pairs: bool = False) -> Shards:
    """A set of shards of a run, which is the run's own or one made from the same fields.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      name: `encoded`, `held_out` or `synthesized`.
      pairs: whether records have what they were compared with, where the data have pairs.

    Raises:
      NotFoundError: it is not complete.
      UserError: it is damaged, or another set.
    """
    skips = config.data.on_corrupt == "skip"
    directory = folder(workdir, name)
    shards = Shards(directory, config.data.max_unreadable if skips else (0.0, 0))
    check_set(config, directory, name)
    if shards.text is not None:
        check_set(config, shards.text.directory, shards.text.directory.name)
    return shards if pairs else shards.without((OTHER, PREFERENCE))


def check_set(config: Config, directory: Path, name: str) -> None:
    """Whether a set of shards that is there was made from the same fields.

    Raises:
      UserError: it was not; the first field that differs is named.
    """
    old = read_identity(directory)
    if not old:
        _LOG.warning("%s does not say what it was made of: it is used as it is", directory)
        return
    reason = set_difference(config, directory, name, old)
    if reason:
        raise UserError(reason)


def set_difference(
    config: Config,
    directory: Path,
    name: str,
    old: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Why a set of shards is none of this run's, records aside; empty if it is.

    Args:
      config: the run's config.
      directory: folder of the set.
      name: the set.
      old: its identity.
      inputs: digests of what goes into all of it; default: they are not looked at.

    Returns:
      a sentence that names the first difference and what the user can do.
    """
    found = difference(old, identity(to_dict(config), name, inputs))
    if not found:
        return ""
    return (
        f"{directory} is another set than this run's ({found}): set it back, use another "
        f"--workdir or --data, or let --on_change=redo make it anew"
    )


def student_data(config: Config, workdir: Path) -> Shards:
    """The shards that the student learns from.

    Raises:
      UserError: they hold prompts alone, are damaged, or another set.
    """
    shards = shards_of(config, workdir, config.distil.data)
    if not shards.has_latents:
        raise UserError(
            f"{shards.directory} holds prompts without latents: use distil.data=synthesized, or "
            f"encode images"
        )
    return shards


def trained_buckets(config: Config, workdir: Path) -> tuple[Bucket, ...]:
    """The buckets that a run trains on: those of its config that have records, or all that it has.

    Raises:
      NotFoundError: the config names none, and the data, for which they are chosen, are not encoded
        yet.
    """
    named = tuple(Bucket.parse(name) for name in config.data.buckets)
    if named and not is_complete(encoded(workdir)):
        return named
    found = shards_of(config, workdir, "encoded").buckets
    return tuple(bucket for bucket in named if bucket in found) or found


def checkpoints_of(config: Config, workdir: Path, stage: str) -> Checkpoints:
    """The checkpoints of a stage.

    Raises:
      DamagedError: there are some, and all are damaged.
      UserError: there are some, made with another config.
    """
    return checkpoints_in(config, folder(workdir, stage), stage)


def checkpoints_in(config: Config, directory: Path, stage: str) -> Checkpoints:
    """As `checkpoints_of`, of the folder of the stage."""
    saved = Checkpoints(
        directory / "checkpoints",
        every=config.checkpoint.every,
        minutes=config.checkpoint.minutes,
        keep=config.checkpoint.keep,
    )
    step = saved.latest()
    if step is not None:
        found = checkpoint_difference(config, saved.directory, stage, step, saved.config(step))
        if found:
            raise UserError(found)
    return saved


def checkpoint_difference(
    config: Config,
    directory: Path,
    stage: str,
    step: int,
    saved: dict[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> str:
    """Why a training neither goes on from a checkpoint nor has ended there; empty if it does.

    Args:
      config: the run's config.
      directory: folder of the checkpoints.
      stage: the training.
      step: the checkpoint's step.
      saved: the checkpoint's config.
      inputs: digests of what it reads; default: they are not looked at.

    Returns:
      a sentence that names the first difference and what the user can do.
    """
    steps = getattr(config, stage).steps
    if step > steps:
        return (
            f"{directory} holds step {step} and {stage}.steps is {steps}: use {step} or more, or "
            f"another --workdir"
        )
    old = identity(saved, stage, saved.get("inputs"))
    new = identity(to_dict(config), stage, inputs)
    free = own_fields(stage)
    # What is done is not trained on with another rate.
    found = difference(old, new, free if step < steps else free[:1])
    if not found:
        return ""
    return (
        f"{directory} holds a checkpoint of another config ({found}): "
        f"{_remedy(stage, difference(old, new, free), step)}"
    )


def _remedy(stage: str, others: str, step: int) -> str:
    """What the user can do; `others` is a difference with which no training goes on, or empty."""
    ways = [] if others else [f"raise {stage}.steps above {step} to train on with it"]
    if stage == "distil":
        ways.append("begin another --workdir from its student by --from, or anew by --data")
    else:
        ways.append("use another --workdir")
    return ", ".join([*ways, "set it back, or let --on_change=redo train anew"])


def load_generator(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The data generator, on a mesh: parameters of `weights`, or the average of `pretrain`, with
    what `prefer` has made of them.

    Raises:
      NotFoundError: a stage before is not done, or the weights are not there.
      UserError: the weights are damaged, or of another architecture than the config's.
    """
    return _load_generator_as(config, workdir, mesh, architectures.generator_architecture(config))


def load_generator_before(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The data generator before `prefer`; see `load_generator`."""
    return _load_before_as(
        config, workdir, mesh, architectures.generator_architecture(config), config.loras
    )


def _load_generator_as(config: Config, workdir: Path, mesh: Mesh, architecture: Any) -> Params:
    taught = _preference_loras(config, workdir) if config.prefer.before else ()
    return _load_before_as(config, workdir, mesh, architecture, (*config.loras, *taught))


def _load_before_as(
    config: Config, workdir: Path, mesh: Mesh, architecture: Any, loras: Sequence[str]
) -> Params:
    added = open_loras(family_of(config), architecture, loras)
    if config.weights:
        return added(_read(config, config.weights, architecture, mesh))
    params = _matched("pretrain", config, workdir, mesh)
    if architecture.cut:
        family = family_of(config)
        model = family.backbone(architecture)
        layout = parameter_shardings(mesh, model.shapes, model.axes)
        keep = jax.jit(lambda tree: family.cut_params(tree, model.shapes), out_shardings=layout)
        params = keep(params)
    return added(jax.tree.map(lambda leaf: leaf.astype(architecture.param_dtype), params))


def preference_file(workdir: Path) -> Path:
    """The LoRA that `prefer` writes."""
    return folder(workdir, "prefer") / "lora" / LORA_WEIGHTS


def _preference_loras(config: Config, workdir: Path) -> tuple[str, ...]:
    """That LoRA, once the stage is done."""
    _finished(config, workdir, "prefer", config.prefer.steps).close()
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
    saved = _finished(config, workdir, "prefer", config.prefer.steps)
    layout = jax.tree.map(lambda _: sharding, network.shapes)
    found = saved.restore_tree("ema", abstract_like(network.shapes, layout), config.prefer.steps)
    saved.close()
    return found


def _matched(stage: str, config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The average that a stage of flow matching has made, without the rest of its state."""
    settings = getattr(config, stage)
    model = objectives.flow_matching(config, settings).model
    layout = parameter_shardings(mesh, model.shapes, model.axes)
    saved = _finished(config, workdir, stage, settings.steps)
    params = saved.restore_tree("ema", abstract_like(model.shapes, layout), settings.steps)
    saved.close()
    return params


def load_finetuned(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """What `finetune` has made of the data generator, on a mesh.

    A run that began from another is not fine-tuned itself: it has what the first of them made,
    whatever that one's data are.

    Raises:
      NotFoundError: `finetune` is not done.
    """
    if not first_finetuned(config, workdir):
        return _matched("finetune", config, workdir, mesh)
    first = first_run(workdir)
    model = objectives.flow_matching(config, config.finetune).model
    layout = parameter_shardings(mesh, model.shapes, model.axes)
    saved = Checkpoints(first / "finetune" / "checkpoints")
    params = saved.restore_tree("ema", abstract_like(model.shapes, layout), saved.find(None))
    saved.close()
    return params


def first_finetuned(config: Config, workdir: Path) -> dict[str, str]:
    """A digest of what the first run fine-tuned, by its name among inputs; empty where that run is
    this one, or nothing of it is needed.

    Raises:
      NotFoundError: it is gone.
    """
    first = first_run(workdir)
    if first == workdir or not config.finetune.steps or not config.distil.needs_start:
        return {}
    newest = newest_config(first / "finetune" / "checkpoints")
    if newest is None:
        raise NotFoundError(
            f"{first} has nothing of its stage 'finetune' any more, which the student of {workdir} "
            f"began as: put it back, or begin anew without --from"
        )
    digest = hashlib.sha256(json.dumps(newest, sort_keys=True).encode())
    return {"finetune of the first run": digest.hexdigest()[:16]}


def load_start(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The network that the student begins as, on a mesh: the data generator, or what `finetune` has
    made of it.

    Raises:
      NotFoundError: a stage before is not done, or the weights are not there.
      UserError: the weights are damaged, or of another architecture than the config's.
    """
    if config.finetune.steps:
        return load_finetuned(config, workdir, mesh)
    return load_generator(config, workdir, mesh)


def load_base(config: Config, workdir: Path, mesh: Mesh) -> Params:
    """The same as adapters need it: constant, in the dtype of constant networks.

    Raises:
      NotFoundError: see `load_start`.
      UserError: see `load_start`.
    """
    dtype = architectures.generator_architecture(config).param_dtype
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
    else:
        params = _load_generator_as(config, workdir, mesh, source)
    if not architecture.quantized:
        return params
    return quantize_params(family_of(config).backbone(architecture), params, mesh)


def load_frozen(
    config: Config, workdir: Path, mesh: Mesh, names: Iterable[str], shards: Shards
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
      UserError: weights are damaged, or of another architecture than the config's.
    """
    load = {
        "teacher": load_teacher,
        architectures.GENERATOR: load_generator,
        BASE: load_base,
    }
    frozen: dict[str, Any] = {name: load[name](config, workdir, mesh) for name in names}
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


def load_student(config: Config, workdir: Path, mesh: Mesh) -> TrainState:
    """The last state of `distil`, on a mesh.

    Raises:
      NotFoundError: `distil` is not done.
    """
    abstract = abstract_like(*distillation_layout(objectives.distillation(config), mesh))
    saved = _finished(config, workdir, "distil", config.distil.steps)
    state = saved.restore(abstract, config.distil.steps)
    saved.close()
    return state


def student_step(config: Config, workdir: Path, step: int | None = None) -> int:
    """The step of a checkpoint of `distil`, finished or not; default: of the newest.

    Raises:
      NotFoundError: there is no such checkpoint.
      UserError: it is of another config.
    """
    directory = folder(workdir, "distil") / "checkpoints"
    # To look for checkpoints makes their directory.
    saved = checkpoints_of(config, workdir, "distil") if directory.is_dir() else None
    if saved is None or saved.latest() is None:
        raise NotFoundError(
            f"{workdir} holds no student yet: run the stage 'distil' with `python -m ladd_jax.main`"
        )
    found = saved.find(step)
    saved.close()
    return found


def finished_student_step(config: Config, workdir: Path) -> int:
    """The last step of `distil`.

    Raises:
      NotFoundError: `distil` is not done.
      UserError: its checkpoints are of another config.
    """
    _finished(config, workdir, "distil", config.distil.steps).close()
    return config.distil.steps


def load_student_weights(
    config: Config, workdir: Path, mesh: Mesh, student: str, step: int
) -> Params:
    """One of the students of `distil`, finished or not: a whole network, with its adapters added,
    and the LoRA of `prefer` where it is applied after the distillation.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      mesh: mesh that the parameters are put on.
      student: one of `STUDENTS`.
      step: step of the checkpoint, from `student_step` or `finished_student_step`.

    Raises:
      NotFoundError: there is no such checkpoint.
      UserError: it does not fit the config.
    """
    network, architecture = objectives.student(config), architectures.student_architecture(config)
    loras = _preference_loras(config, workdir) if config.prefer.after else ()
    added = open_loras(family_of(config), architecture, loras)
    params = load_trained(config, workdir, mesh, network, student, step)
    if not isinstance(network, Adapted):
        return added(params)
    layout = parameter_shardings(mesh, network.base.shapes, network.base.axes)
    merge = partial(network.merge, dtype=architecture.param_dtype)
    whole = jax.jit(merge, out_shardings=layout)(params, load_base(config, workdir, mesh))
    return added(whole)


def load_trained(
    config: Config, workdir: Path, mesh: Mesh, network: Backbone, student: str, step: int
) -> Params:
    """What was trained of a student of `distil`: its adapters, or all of it where it has none.

    Arguments and errors are those of `load_student_weights`, and `network` is that of
    `objectives.student`. Adapters of weights that are not here any more are refused.
    """
    layout = parameter_shardings(mesh, network.shapes, network.axes)
    saved = checkpoints_of(config, workdir, "distil")
    base = weights_inputs(config) | first_finetuned(config, workdir)
    if network.constants and base:
        # A whole student does not depend on what has become of the weights that it began with.
        found = checkpoint_difference(
            config, saved.directory, "distil", step, saved.config(step), base
        )
        if found:
            saved.close()
            raise UserError(found)
    params = saved.restore_tree(STUDENTS[student], abstract_like(network.shapes, layout), step)
    saved.close()
    return params


def load_origin(origin: Path, step: int | None, abstract: TrainState) -> TrainState:
    """The student that a run begins with, its heads and optimizers too.

    Args:
      origin: workdir of the run that has it.
      step: step of its checkpoint; default: the newest.
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      NotFoundError: its checkpoint is gone.
      UserError: it is damaged, or of another form.
    """
    saved = Checkpoints(origin / "distil" / "checkpoints")
    state = saved.restore(abstract, step)
    saved.close()
    _LOG.info("distil: begins with the student of %s at step %d", origin, int(state.step))
    return state


def _finished(config: Config, workdir: Path, stage: str, steps: int) -> Checkpoints:
    """The checkpoints of a stage that is done; raises NotFoundError where it is not."""
    saved = checkpoints_of(config, workdir, stage)
    if saved.latest() != steps:
        found = "nothing" if saved.latest() is None else f"step {saved.latest()}"
        raise NotFoundError(
            f"{saved.directory} holds {found} of {steps} steps: run the stage {stage!r} first, "
            f"with the same --config and --workdir"
        )
    return saved

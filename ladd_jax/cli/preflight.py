"""Finds what would stop a job late, before the job starts and before it writes anything.

A section of the config checks its own fields; here are the checks that depend on several sections,
on the stages, or on the devices of this machine.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ladd_jax.cli.disk_errors import disk_error
from ladd_jax.cli.disk_space import check_space, check_writable
from ladd_jax.cli.inputs import check_parts, count_records
from ladd_jax.config import objectives
from ladd_jax.config.architectures import (
    generator_architecture,
    open_dino,
    student_architecture,
    teacher_architecture,
)
from ladd_jax.config.fields import Config, Distil, Finetune, Prefer, Pretrain
from ladd_jax.config.pretraining import NETWORKS, further_trainings
from ladd_jax.config.workdir import data_directory, first_run, places
from ladd_jax.data.buckets import Bucket, check_resolution, check_sides
from ladd_jax.data.conditions import CONDITIONS
from ladd_jax.data.joined import joined_channels, pretrains
from ladd_jax.data.sources import SOURCES
from ladd_jax.data.sources.fill_buckets import readers
from ladd_jax.diffusion.samplers import student_sigmas
from ladd_jax.errors import NotFoundError, Problems, UserError
from ladd_jax.evaluation.extractors import EXTRACTORS, extractor_for
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.methods import METHODS
from ladd_jax.models.families import family_of
from ladd_jax.objectives.dpo import DPO
from ladd_jax.parallel.mesh import check_batch_size, make_mesh
from ladd_jax.paths import expand, near
from ladd_jax.ranges import check_choice
from ladd_jax.stages.load import first_made
from ladd_jax.stages.subjects import check_conditions
from ladd_jax.training.checkpoint import steps_in
from ladd_jax.training.writers import check_writers
from ladd_jax.weights.source import names_repository

_Training = Pretrain | Prefer | Finetune | Distil
_Trainings = dict[str, _Training]

# Stages that read the data generator.
_OF_GENERATOR = ("prefer", "synthesize", "finetune", "distil", "evaluate")

# Stages that read the network that the student starts from.
_OF_START = ("finetune", "distil", "evaluate")


def check(config: Config, workdir: Path | None = None) -> None:
    """Builds what the config describes and opens what it names, without reading any weights.

    Args:
      config: the run's config.
      workdir: the run's workdir; None: it is not checked.

    Raises:
      UserError: something would stop a stage. All errors are reported at once, each with a value
        and a remedy.
    """
    problems = Problems()
    look(config, problems, workdir)
    problems.tell()


def look(
    config: Config,
    problems: Problems,
    workdir: Path | None = None,
    refused: Collection[str] = (),
    data: Path | None = None,
    origin: str = "",
) -> None:
    """Adds the errors that `check` would raise to problems that are known already.

    Args:
      config: the run's config.
      problems: errors that are known; those found here are added.
      workdir: the run's workdir.
      refused: sections and fields of the config, or `stages`, that are known to be invalid. What
        depends on them is not checked, since that would only report consequences.
      data: the directory of the run's data; default: the one that the workdir names.
      origin: workdir of a run whose student this one begins with; empty for the one that the
        workdir names, or none.
    """
    if data is None and workdir is not None:
        with problems.found():
            data = data_directory(workdir)

    def part(needs: str, test: Callable[[], None]) -> None:
        if not set(needs.split()) & set(refused):
            with problems.found(), _disk_sentences():
                test()

    trainings: _Trainings = {
        "pretrain": config.pretrain,
        "prefer": config.prefer,
        "finetune": config.finetune,
        "distil": config.distil,
    }
    trainings = {
        name: stage for name, stage in trainings.items() if name in config.stages and stage.steps
    }
    networks = "model student teacher data heads dino distil pretrain prefer finetune weights"
    part("mesh", lambda: _check_mesh(config))
    for name, stage in trainings.items():
        part(f"mesh stages {name}", functools.partial(_check_batch, config, stage))
    part("log stages", lambda: _check_log(config, trainings))
    # Objectives are built as a check: what cannot be built is refused.
    built: dict[str, Any] = {}
    part("model data pretrain weights", functools.partial(_build, config, "pretrain", built))
    for name in further_trainings(config):
        part(
            f"model {NETWORKS[name]} data pretrain weights",
            functools.partial(_build, config, name, built),
        )
    if config.prefer.steps:
        part(
            "model data prefer weights",
            lambda: built.update(prefer=_preference(config)),
        )
    part(
        "model student data finetune weights", functools.partial(_build, config, "finetune", built)
    )
    part(networks, functools.partial(_build, config, "distil", built))
    part("data model stages weights", lambda: _check_data(config, trainings))
    part("data model student teacher weights", lambda: _check_sides(config))
    part("student teacher stages weights", lambda: _check_further(config, workdir, origin))
    part("dino distil stages", lambda: _check_dino(config))
    part("stages synthesize prefer finetune distil", lambda: _check_samples(config, trainings))
    part("data model weights stages pretrain", lambda: _check_base(config, data))
    if "evaluate" in config.stages:
        part("data evaluate model", lambda: _check_subjects(config))
    if "evaluate" in config.stages or ("distil" in config.stages and config.log.samples_every):
        part("data evaluate distil", lambda: _check_judges(config))
    part(
        "data model evaluate stages weights loras log", lambda: check_parts(config, problems, data)
    )
    sizes: dict[Bucket, int] = {}
    part(
        "data stages synthesize pretrain prefer finetune distil seed",
        lambda: sizes.update(count_records(config, data)),
    )
    if workdir is not None:
        part("", lambda: check_writable(workdir))
        # After an error, what the stages would write is not known.
        if not problems:
            place = data or workdir
            if _from_another(workdir, origin):
                # A run that begins with another run's student has these networks from there.
                built = {name: target for name, target in built.items() if name not in NETWORKS}
            space = functools.partial(check_space, config, workdir, place, sizes, built)
            part(f"{networks} checkpoint", space)


@contextlib.contextmanager
def _disk_sentences() -> Iterator[None]:
    """A block in which a system's errors about the user's paths become a UserError."""
    try:
        yield
    except OSError as error:
        sentence = "" if isinstance(error, UserError) else disk_error(error)
        if not sentence:
            raise
        raise UserError(sentence) from error


def _preference(config: Config) -> DPO:
    """The objective of `prefer`, which may train only what a LoRA file can hold."""
    objective = objectives.preference(config)
    try:
        family_of(config).check_lora(generator_architecture(config), objective.model)
    except UserError as error:
        raise UserError(
            f"prefer.lora.layers is {', '.join(config.prefer.lora.layers)}, which a LoRA file "
            f"cannot hold ({error}): use *block*, or other names of dense layers"
        ) from error
    return objective


def _check_mesh(config: Config) -> None:
    make_mesh(config.mesh.sizes)


def _check_batch(config: Config, stage: _Training) -> None:
    try:
        mesh = make_mesh(config.mesh.sizes)
    except UserError:
        # `_check_mesh` reports it.
        return
    check_batch_size(stage.batch_size, mesh, stage.accumulation)


def _check_log(config: Config, trainings: _Trainings) -> None:
    traced = config.log.traced
    longest = max((stage.steps for stage in trainings.values()), default=0)
    if traced and traced.start > longest:
        raise UserError(
            f"log.profile {config.log.profile} begins after the last of {longest} steps: use "
            f"earlier ones"
        )
    if trainings:
        check_writers(config.log.writers)


def _check_sides(config: Config) -> None:
    sides = family_of(config).sides
    networks = {"model": generator_architecture(config)}
    if config.student.depth:
        networks["student"] = student_architecture(config)
    if config.teacher.depth:
        networks["teacher"] = teacher_architecture(config)
    check_sides(
        map(Bucket.parse, config.data.buckets), {name: sides(net) for name, net in networks.items()}
    )


def _build(config: Config, training: str, built: dict[str, Any]) -> None:
    built[training] = objectives.of_training(config, training)


def _check_further(config: Config, workdir: Path | None, origin: str) -> None:
    """Checks that stages will find the networks that have a size of their own."""
    stages, teacher = set(config.stages), config.teacher
    if "distil" in stages and config.weights and teacher.depth and not teacher.weights:
        raise UserError(
            f"teacher.depth is {teacher.depth} and teacher.weights is empty beside the weights "
            f"{config.weights}: name the weights of that network; without them it can only be "
            f"planned"
        )
    reading = {
        "pretrain_teacher": [name for name in ("distil",) if name in stages],
        "pretrain_student": [name for name in _OF_START if name in stages],
    }
    for name in further_trainings(config):
        if not reading[name]:
            continue
        first = workdir and first_run(workdir)
        if workdir and first and (origin or first != workdir):
            # For a run that begins now, this is checked when its places are opened.
            if first != workdir:
                first_made(first, name, workdir)
            continue
        # Without a workdir, stages that do not begin with `encode` may follow existing results.
        begins = workdir is not None or "encode" in stages
        made = workdir is not None and _is_trained(workdir, name, config.pretrain.steps)
        if "pretrain" in stages or not begins or made:
            continue
        section = NETWORKS[name]
        remedy = f"name it, or {section}.weights" if section == "teacher" else "name it"
        raise UserError(
            f"{section}.depth is {getattr(config, section).depth}"
            f"{' and teacher.weights is empty' * (section == 'teacher')}, and the stage "
            f"'pretrain', which trains that network, is not among stages, so that "
            f"{reading[name][0]!r} would not find it: {remedy}"
        )


def _from_another(workdir: Path, origin: str) -> bool:
    """Whether a run begins, or began, with another run's student."""
    return bool(origin) or places(workdir).origin is not None


def _is_trained(place: Path, training: str, steps: int) -> bool:
    """Whether a training whose checkpoints are in a place is done."""
    return steps in steps_in(place / training / "checkpoints")


def _check_dino(config: Config) -> None:
    distil, dino = config.distil, config.dino
    if not METHODS[distil.objective].in_pixels or "distil" not in config.stages:
        return
    if not dino.weights:
        raise UserError(
            f"distil.objective is {distil.objective} and dino.weights is empty: name a DINOv2, "
            f"such as facebook/dinov2-small; without one it can only be planned"
        )
    open_dino(config)


def _check_samples(config: Config, trainings: _Trainings) -> None:
    stages = set(config.stages)
    if config.finetune.steps and {"synthesize", "distil"} <= stages and "finetune" not in stages:
        raise UserError(
            f"finetune.steps is {config.finetune.steps} and the stage 'finetune' is not among "
            f"stages, so that 'distil' would not find what it starts from: name it, or use 0"
        )
    if config.prefer.before and {"encode", "synthesize"} <= stages and "prefer" not in stages:
        raise UserError(
            f"prefer.steps is {config.prefer.steps} and the stage 'prefer' is not among stages, so "
            f"that 'synthesize' would not find its LoRA: name it, or use 0"
        )
    made = config.synthesize.samples if "synthesize" in config.stages else 0
    for name in ("finetune", "distil"):
        if name in trainings and 0 < made < trainings[name].batch_size:
            raise UserError(
                f"synthesize.samples {made} are fewer than one batch of {name}.batch_size "
                f"{trainings[name].batch_size}: raise one or lower the other"
            )


def _check_base(config: Config, place: Path | None) -> None:
    """Checks that stages will find the data generator that `pretrain` makes from the weights."""
    stages = set(config.stages)
    reading = [name for name in _OF_GENERATOR if name in stages]
    if not (config.weights and pretrains(config) and reading and "encode" in stages):
        return
    if "pretrain" in stages or (place and _is_trained(place, "pretrain", config.pretrain.steps)):
        return
    raise UserError(
        f"data.joined is {config.data.joined!r}, which the weights {config.weights} do not read, "
        f"and the stage 'pretrain', which makes a data generator of them that does, is not among "
        f"stages, so that {reading[0]!r} would not find it: name it"
    )


def _check_data(config: Config, trainings: _Trainings) -> None:
    data, kind = config.data, SOURCES[config.data.source]
    if "prefer" in trainings and not data.other_column:
        raise UserError(
            f"prefer.steps is {config.prefer.steps} and data.other_column is empty: name the "
            f"column of the pictures that each was compared with, and data.preference_column, or "
            f"use 0"
        )
    if kind.channels and config.model.channels != kind.channels:
        raise UserError(
            f"model.channels is {config.model.channels}: {data.source} have {kind.channels}"
        )
    if kind.drawn:
        _check_examples(config, trainings)
        return
    if not config.weights and kind.prompts_alone:
        raise UserError(
            f"weights is empty, and the source {data.source!r} needs a released pipeline: give "
            f"--config=FILE:weights=DIR or --weights=DIR, a folder that `hf download OWNER/NAME "
            f"--local-dir=DIR` or StableDiffusion3Pipeline.save_pretrained wrote, or owner/name "
            f"of the hub"
        )
    if "encode" in config.stages and kind.path and not data.path:
        raise UserError(
            "data.path is empty: give --config=FILE:data=PATH, --prompts=FILE or --images=DIR"
        )
    if config.weights:
        if "pretrain" in config.stages and not pretrains(config):
            raise UserError(
                "the stage 'pretrain' makes a data generator and weights are one: leave it out"
            )
    elif kind.encoded and not data.autoencoder:
        if config.model.channels not in (1, 3):
            raise UserError(
                f"weights is empty and model.channels is {config.model.channels}: without weights "
                f"and data.autoencoder latents are pixels, of 1 channel, grey, or 3"
            )
        if not data.buckets:
            check_resolution(data.resolution, config.model.patch)


def _check_examples(config: Config, trainings: _Trainings) -> None:
    """Checks that the examples of a bucket fill a batch of each training that reads them."""
    for name in readers(config):
        if name in trainings and config.data.examples < trainings[name].batch_size:
            raise UserError(
                f"data.examples {config.data.examples} of a bucket are fewer than one batch of "
                f"{name}.batch_size {trainings[name].batch_size}: raise one or lower the other"
            )


def _check_subjects(config: Config) -> None:
    """Checks the prompts of the stage 'evaluate', and whether real pictures are held out for it."""
    data, stage = config.data, config.evaluate
    if stage.prompts:
        joined = joined_channels(config)
        if joined and data.joined not in CONDITIONS:
            field = f"data.joined is {data.joined!r}"
            if not data.joined:
                field = f"model.joined_channels is {joined}"
            raise UserError(
                f"evaluate.prompts is {stage.prompts} and {field}: prompts have no pictures that "
                f"are joined to x_t; leave evaluate.prompts empty, so that held-out records are "
                f"judged"
            )
        if not stage.extractor:
            raise UserError(
                "evaluate.extractor is empty and with evaluate.prompts no real pictures are used: "
                "name one, such as clip or inception with evaluate.extractor_weights, or own, "
                "which is trained on the run's pictures"
            )
        check_conditions(config)
        return
    if SOURCES[data.source].prompts_alone:
        raise UserError(
            "evaluate.prompts is empty and prompts have no held-out records: name a file of "
            "prompts, such as parti128:PartiPrompts.tsv, or leave 'evaluate' out of stages"
        )
    if data.source == "images" and not data.held_out:
        raise UserError(
            "data.held_out is 0 and the stage 'evaluate' judges by held-out pictures: set a share "
            "such as 0.05, or evaluate.prompts, or leave it out of stages"
        )


def _check_judges(config: Config) -> None:
    """Checks what the stage 'evaluate' and the previews of training use."""
    stage = config.evaluate
    for steps in stage.student_steps:
        student_sigmas(steps, config.distil.timesteps)
    for name, table, values in (
        ("metrics", METRICS, stage.metrics),
        ("extractor", EXTRACTORS, [stage.extractor] * bool(stage.extractor)),
    ):
        for value in values:
            check_choice(value, f"evaluate.{name}", *table)
    name = extractor_for(config)
    kind = EXTRACTORS[name]
    if kind.weights and not stage.extractor_weights:
        raise UserError(
            f"evaluate.extractor_weights is empty and {name} reads weights: name their file or "
            f"folder, or owner/name of the hub"
        )
    place = expand(stage.extractor_weights)
    # Something that looks like a name on the hub is checked when it is read.
    on_hub = name != "inception" and names_repository(stage.extractor_weights)
    if kind.weights and not place.exists() and not on_hub:
        raise NotFoundError(
            f"evaluate.extractor_weights is {place}, which does not exist{near(place)}: name the "
            f"weights of {name}"
        )
    if kind.source and kind.source != config.data.source:
        raise UserError(
            f"evaluate.extractor {name!r} works for {kind.source} only and data.source is "
            f"{config.data.source}: use another, such as own"
        )
    if stage.per_prompt < 2 and "diversity" in stage.metrics:
        raise UserError(
            f"evaluate.per_prompt is {stage.per_prompt} and the diversity of a prompt's samples "
            f"needs 2: raise it, or leave diversity out of evaluate.metrics"
        )

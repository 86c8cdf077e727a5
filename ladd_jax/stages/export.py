"""Exports a student of a run to files that other programs read; its family decides which files."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config, Distil, to_dict
from ladd_jax.config.identity import FREE_FIELDS
from ladd_jax.config.own import SECTIONS
from ladd_jax.config.pretraining import trainings_of_sections
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import nearest
from ladd_jax.data.joined import pretrains
from ladd_jax.diffusion.samplers import student_sigmas
from ladd_jax.diffusion.sampling import scales_of
from ladd_jax.errors import ExistsError, UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.base import Params
from ladd_jax.models.card import named
from ladd_jax.models.families import ADAPTERS, Export, family_of
from ladd_jax.models.lora import Adapted
from ladd_jax.names import listed
from ladd_jax.objectives.progressive import student_steps
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.ranges import check_choice
from ladd_jax.stages.checkpoints import student_step
from ladd_jax.stages.load import open_loras
from ladd_jax.stages.sets import trained_buckets
from ladd_jax.stages.students import load_student_weights, load_trained
from ladd_jax.stages.trained import FACTS, given_scales
from ladd_jax.weights.lora import AddedLoRA
from ladd_jax.weights.push import check_push, push
from ladd_jax.weights.source import PIPELINE_INDEX
from ladd_jax.whole_files import whole_folder

_LOG = logging.getLogger(__name__)


def export(
    workdir: Path,
    out: Path,
    *,
    model: str = "ema",
    step: int | None = None,
    layout: str = "diffusers",
    dtype: str = "bfloat16",
    loras: Sequence[str] = (),
    guidance: float | None = None,
    image_guidance: float | None = None,
    push_to: str = "",
) -> None:
    """Writes a student of a run to files that other programs read, all of them or none.

    Args:
      workdir: the run's folder.
      out: the folder to make.
      model: `ema` or `student`.
      step: step of the checkpoint; default: the newest.
      layout: one of the family's layouts; for SD3 `diffusers`, `single`, `both`, `lora` or
        `kohya`.
      dtype: dtype of the transformer's files; the other components are copied.
      loras: LoRA files to add to the student, each `PATH` or `PATH:SCALE`.
      guidance: guidance scale to fix in the files of a student that is given the scale, since other
        programs do not give it; default: `synthesize.guidance`.
      image_guidance: the same for the scale on the image, for a student that is given both.
      push_to: owner/name on the hub to upload the folder to; empty for no upload.

    Raises:
      NotFoundError: there is no such run, checkpoint or pipeline.
      ExistsError: there is something at `out`.
      UserError: the run did not start from released weights, the family has no such layout, the
        student was not trained for the guidance, a LoRA is for another network, or the hub rejects
        the upload.
    """
    config = read(workdir)
    if not config.weights:
        raise UserError(
            f"{workdir} has a data generator of its own (weights is empty): export a run that "
            f"started from a released pipeline"
        )
    # `lexists` also finds a dangling link, which would be in the way once all is written.
    if os.path.lexists(out):
        raise ExistsError(f"{out} exists: remove it, or choose another --out")
    if push_to:
        check_push(push_to)
    family, made = family_of(config), config.synthesize
    ranges = (made.guidance_range, made.image_guidance_range)
    scales = scales_of(given_scales(made.sampling, ranges, (guidance, image_guidance)))
    step = student_step(config, workdir, step)
    exported = describe(
        config, out.absolute().name, workdir, model, step, layout, dtype, loras, scales
    )
    if push_to:
        exported = dataclasses.replace(exported, place=push_to)
    with whole_folder(out, "out") as partial:
        family.write_export(partial, exported)
        if (partial / PIPELINE_INDEX).is_file():
            # Sampling an exported pipeline needs facts that its index does not have.
            facts = {
                "times": list(config.distil.timesteps),
                "sampler": METHODS[config.distil.objective].sampler,
                "buckets": [bucket.name for bucket in trained_buckets(config, workdir)],
                "text_length": config.data.text_length,
                "step": step,
            }
            # Its class may say it, and not of what a package joins.
            facts |= {"joined": config.data.joined} if config.data.joined else {}
            facts |= dict(zip(("guidance", "image_guidance"), scales, strict=False))
            (partial / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    if push_to:
        _LOG.info("export: uploading to %s", push_to)
        _LOG.info("export: uploaded, %s", push(out, push_to))


def describe(
    config: Config,
    name: str,
    workdir: Path,
    model: str,
    step: int,
    layout: str,
    dtype: str,
    loras: Sequence[str] = (),
    guidance: Sequence[float] = (),
) -> Export:
    """The description from which a family exports a student; nothing is read yet.

    Args:
      config: the run's config.
      name: the export's name.
      workdir: the run's folder.
      model: `ema` or `student`.
      step: step of the checkpoint.
      layout: one of the family's layouts.
      dtype: dtype of the transformer's files.
      loras: LoRA files to add to it, each `PATH` or `PATH:SCALE`.
      guidance: guidance scale to fix in the files of a student that is given the scale, followed by
        the scale on the image if it is given both.

    Raises:
      UserError: the family has no such layout, or none for the student's sampler; the run has no
        adapters that others can use; or a LoRA is for another network.
    """
    family, sampler = family_of(config), METHODS[config.distil.objective].sampler
    layouts = family.layouts
    if not layouts:
        raise UserError(
            f"networks of model.family {config.model.family!r} have no layout of other programs: "
            f"sample the run itself by --checkpoint"
        )
    check_choice(layout, "layout", *layouts)
    if sampler not in family.samplers:
        raise UserError(
            f"the student is sampled by {sampler!r}, and layouts only support "
            f"{listed(family.samplers)}: sample the run itself by --checkpoint"
        )
    buckets = trained_buckets(config, workdir)
    square = nearest(buckets, 1, 1)
    times = tuple(config.distil.timesteps)
    counts = [steps for steps in range(len(times), 0, -1) if len(times) % steps == 0]
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    adapters = None
    # With the guidance scale fixed, a student has the architecture of the network it started from.
    architecture = architectures.trained_start_architecture(config)
    added = open_loras(family, architecture, loras)

    def load() -> Params:
        params = load_student_weights(config, workdir, mesh, model, step)
        return added(family.fixed_guidance(params, *guidance) if guidance else params)

    if ADAPTERS in layouts[layout]:
        network = _adapted(config, loras)
        adapters = network, lambda: load_trained(config, workdir, mesh, network, model, step)
    return Export(
        name=name,
        place=name,
        base=config.weights,
        load=load,
        adapters=adapters,
        architecture=architecture,
        dtype=dtype,
        layouts=layouts[layout],
        sizes=[(bucket.height, bucket.width) for bucket in buckets],
        square=(square.height, square.width),
        text_length=config.data.text_length,
        sigmas={steps: student_sigmas(steps, times) for steps in counts},
        objective=config.distil.objective,
        joined=config.data.joined,
        made=_how_made(config, model, step, dtype, loras)
        | dict(
            zip(
                ("guidance of these files", "guidance on the image"),
                (f"{scale:g}" for scale in guidance),
                strict=False,
            )
        ),
    )


def _adapted(config: Config, loras: Sequence[str]) -> Adapted:
    """The adapted network whose adapters are written; raises if others could not use them."""
    if loras:
        raise UserError(
            f"--lora={loras[0]} is added to a whole network, and --layout=lora writes only "
            f"adapters: leave it out and load both LoRAs there, or use another --layout"
        )
    network = objectives.student(config)
    if not isinstance(network, Adapted):
        raise UserError(
            "the run trained a whole network and no adapters (distil.lora.rank is 0): use another "
            "--layout"
        )
    if config.finetune.steps:
        raise UserError(
            f"the adapters are of a network that this run fine-tuned (finetune.steps is "
            f"{config.finetune.steps}), which nobody else has: use another --layout"
        )
    if pretrains(config):
        raise UserError(
            f"the adapters are of a network that this run trained to read channels of its data "
            f"(data.joined is {config.data.joined!r}), which nobody else has: use another --layout"
        )
    if config.prefer.before:
        raise UserError(
            f"the adapters are of a network that this run taught preferences (prefer.steps is "
            f"{config.prefer.steps}), which nobody else has: use another --layout"
        )
    if config.prefer.after:
        raise UserError(
            f"the student has the LoRA of preferences added (prefer.applied is "
            f"{', '.join(config.prefer.applied)}), which is not part of its adapters: use another "
            f"--layout"
        )
    if config.loras:
        raise UserError(
            f"the adapters are of the weights with {', '.join(config.loras)} added (loras), and "
            f"are useless without them: use another --layout"
        )
    return network


def _how_made(
    config: Config, model: str, step: int, dtype: str, loras: Sequence[str]
) -> dict[str, object]:
    """The rows about the student's training in the model card."""
    distil, generator = config.distil, config.synthesize
    data = (
        "encoded images"
        if distil.data == "encoded"
        else f"the base model's samples: {generator.steps} steps of {generator.sampler}, "
        f"{generator.guidance_in_words}, shift {generator.shift:g}"
    )
    rows: dict[str, object] = {
        "student's weights": f"`{model}`, {'the moving average' if model == 'ema' else 'the last'}"
        f" of step {step} of {distil.steps}, in {dtype}",
        "average's decay": f"{distil.ema_decay:g}",
        "data": data,
        "batch": distil.batch_size,
        "times": _listed(distil.timesteps),
        **_OF_OBJECTIVES.get(distil.objective, _of_inputs)(distil),
        "learning rate": f"{distil.optimizer.learning_rate:g}",
        "seed": config.seed,
    }
    alone = distil.objective == "lcm"
    if alone or (METHODS[distil.objective].has_heads and distil.consistency_weight):
        weight = "alone" if alone else f"weight {distil.consistency_weight:g}"
        rows["consistency"] = (
            f"{weight}, along paths of {distil.consistency_steps} steps of "
            f"{distil.consistency_solver}, shift {generator.shift:g}"
        )
    if distil.asks_a_network:
        rows["network that is followed"] = (
            "the fine-tuned network, without guidance"
            if distil.follows == "finetuned"
            else f"the base model, {generator.guidance_in_words}"
        )
    if pretrains(config):
        before = config.pretrain
        rows["base fine-tuned first"] = (
            f"{before.steps} steps of flow matching on encoded images with the channels joined to "
            f"them, batch {before.batch_size}, learning rate {before.optimizer.learning_rate:g}"
        )
    if config.finetune.steps:
        first = config.finetune
        rows["fine-tuned first"] = (
            f"{first.steps} steps of flow matching on the same data, batch {first.batch_size}, "
            f"learning rate {first.optimizer.learning_rate:g}"
        )
    if config.prefer.steps:
        prefer = config.prefer
        rows["preferences"] = (
            f"{prefer.steps} steps of DPO on {prefer.batch_size} pairs, beta {prefer.beta:g}, "
            f"learning rate {prefer.optimizer.learning_rate:g}, as a LoRA of rank "
            f"{prefer.lora.rank}, {prefer.applied_in_words}"
        )
    in_pixels = METHODS[distil.objective].in_pixels
    if in_pixels:
        rows["network under the heads"] = (
            f"{named(config.dino.weights)}, blocks {_listed(sorted(config.dino.blocks))}, pictures "
            f"of {config.dino.resolution} pixels"
        )
    if config.teacher.weights:
        rows["teacher" if in_pixels else "teacher under the heads"] = named(config.teacher.weights)
    for section in trainings_of_sections(config):
        rows[f"{section}'s network"] = (
            f"{getattr(config, section).in_words}, trained from scratch by flow matching"
        )
    if distil.lora.rank:
        rows["adapters"] = (
            f"rank {distil.lora.rank}, scale {distil.lora.scale:g}, of the layers "
            + ", ".join(f"`{pattern}`" for pattern in distil.lora.layers)
        )
    rows |= _of_packages(config)
    for name, given in (("LoRA in the base", config.loras), ("LoRA added", loras)):
        if given:
            named_loras = [AddedLoRA.parse(text) for text in given]
            rows[name] = ", ".join(f"{named(x.place)} at {x.scale:g}" for x in named_loras)
    return rows


def _of_packages(config: Config) -> dict[str, object]:
    """The settings of other packages that are set and change a student."""
    rows: dict[str, object] = {}
    for name, section in SECTIONS.items():
        values, defaults = to_dict(getattr(config.own, name)), to_dict(section.defaults)
        given = [f"{field} {value}" for field, value in values.items() if value != defaults[field]]
        if given and section.beside not in FREE_FIELDS:
            rows[f"settings of {name}"] = ", ".join(given)
    return rows


def _of_inputs(distil: Distil) -> dict[str, object]:
    rows: dict[str, object] = {"their probabilities": _listed(distil.probabilities)}
    if distil.warmup_steps:
        first = f"{_listed(distil.warmup_probabilities)} ({distil.warmup_steps})"
        rows["in the first steps"] = first
    if distil.own_share:
        rows["share of inputs from its own sampling"] = f"{distil.own_share:g}"
    return rows


def _noise(distil: Distil) -> str:
    slope = f" that falls by {distil.renoise_slope:g} to t = 0" if distil.renoise_slope else ""
    return f"logit-normal, mean {distil.renoise_mean:g}{slope}, deviation {distil.renoise_std:g}"


def _of_dmd(distil: Distil) -> dict[str, object]:
    return _of_inputs(distil) | {
        "noise of both scores": _noise(distil),
        "updates of the fake network per step": distil.head_updates,
        "learning rate of the fake network": f"{distil.heads_optimizer.learning_rate:g}",
    }


def _of_progressive(distil: Distil) -> dict[str, object]:
    counts = ", ".join(map(str, student_steps(distil.timesteps, distil.halvings)))
    guided = "the guided velocity, then " * (distil.follows == "generator")
    return {"phases": f"{guided}{counts} steps; all but the last of {distil.phase_steps} updates"}


def _of_ladd(distil: Distil) -> dict[str, object]:
    return _of_inputs(distil) | {
        "noise for the discriminator": _noise(distil),
        "blocks with heads": _listed(distil.hooked_blocks) or "all",
        **_of_heads(distil),
    }


def _of_add(distil: Distil) -> dict[str, object]:
    noise = {"noise for the teacher": _noise(distil)} if distil.distillation_weight else {}
    return _of_inputs(distil) | noise | _of_heads(distil)


def _of_heads(distil: Distil) -> dict[str, object]:
    gamma = f", gamma {distil.reconstruction_gamma:g}" if distil.reconstruction_gamma else ""
    noise = f", estimated with noise of {distil.r1_noise:g}" if distil.r1_noise else ""
    rows: dict[str, object] = {
        "loss": distil.loss,
        "R1": f"{distil.r1_gamma:g} every {distil.r1_interval} steps{noise}",
        "distillation loss": f"{distil.distillation_weight:g}",
        "reconstruction": f"{distil.reconstruction_weight:g}{gamma}",
        "updates of the heads per step": distil.head_updates,
        "learning rate of the heads": f"{distil.heads_optimizer.learning_rate:g}",
    }
    if distil.student_interval > 1:
        rows["steps between updates of the student"] = distil.student_interval
    if distil.refreshed_heads:
        rows["share of the heads reset per step"] = f"{distil.refreshed_heads:g}"
    for name in distil.ramp.ramped:
        first, last = getattr(distil.ramp, name)
        begin, end = distil.ramp.steps
        rows[f"factor of the loss {name}"] = (
            f"{first:g} up to step {begin}, {last:g} from step {end}"
        )
    return rows


_OF_OBJECTIVES: dict[str, Callable[[Distil], dict[str, object]]] = {
    "ladd": _of_ladd,
    "add": _of_add,
    "lcm": lambda distil: {},
    "dmd": _of_dmd,
    "progressive": _of_progressive,
}
"""Functions that give the model card's rows specific to a method, by `distil.objective`."""


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)

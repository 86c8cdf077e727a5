"""Opens trained networks that can be sampled: those of a run, and those of released pipelines."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.architectures import generator_architecture, student_architecture
from ladd_jax.config.fields import Synthesize
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket, bucket_table
from ladd_jax.data.joined import PICTURED, joined_kind, pretrains
from ladd_jax.diffusion.sampling import GivenGuidance, Sampling, scales_of
from ladd_jax.errors import DamagedError, UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.base import Params
from ladd_jax.models.families import (
    Family,
    TextEncoder,
    family_of,
    family_of_pipeline,
    joined_of_pipeline,
)
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.paths import expand
from ladd_jax.ranges import NOT_NEGATIVE, STRENGTH, is_number
from ladd_jax.stages.checkpoints import student_step
from ladd_jax.stages.encode import text_encoder
from ladd_jax.stages.latents import Pictures, of_autoencoder, pictures_of_run
from ladd_jax.stages.load import load_generator, open_loras
from ladd_jax.stages.sets import shards_of, trained_buckets
from ladd_jax.stages.students import load_student_weights
from ladd_jax.weights.source import PIPELINE_INDEX, fetch_pipeline
from ladd_jax.whole_files import read_json

FACTS = "ladd_jax.json"
"""The file in which an export says what diffusers' files do not: its times, sampler and buckets."""


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network, and what belongs to it; whatever is large is only read when it is asked for.

    Attributes:
      place: workdir, folder or repository.
      model: `ema`, `student`, `generator`, or `released`.
      family: the network's family.
      architecture: the network's architecture, with its dtypes.
      times: times that a student was trained at; empty for a data generator, which accepts any.
      sampler: name of the student's sampler.
      generator: how a data generator is sampled by default, as `Synthesize.sampling` gives it.
      buckets: shapes of latents that it was trained on.
      pictures: converts between its latents and pictures.
      encoder: makes the text encoder.
      load: loads the parameters.
      step: step of the checkpoint that the parameters are from; None if they are not from one.
      loras: LoRA files that are added to the parameters, as the user named them.
      guidance_range: lowest and highest guidance scale that a student was trained with; empty for
        networks that are not given the scale.
      image_guidance_range: the same for the scale on the image, for a student that is given both.
      fixed_guidance: the scale, or both scales, that such a student was exported with; None for
        others.
      joined: what is joined to x_t, as `data.joined` names it; empty for none.
      null: gives the arrays that stand for no cond, by name, as far as they are known.
      unread: why `generator` has no shift to sample with by default, in a sentence that says what
        to do; empty if it has one.
    """

    place: str
    model: str
    family: Family
    architecture: Any
    times: tuple[float, ...]
    sampler: str
    generator: dict[str, Any]
    buckets: tuple[Bucket, ...]
    pictures: Pictures
    encoder: Callable[[], TextEncoder]
    load: Callable[[], Params]
    step: int | None
    loras: tuple[str, ...] = ()
    guidance_range: tuple[float, ...] = ()
    image_guidance_range: tuple[float, ...] = ()
    fixed_guidance: GivenGuidance = None
    joined: str = ""
    null: Callable[[], Mapping[str, np.ndarray]] = dict
    unread: str = ""

    @property
    def reads_picture(self) -> bool:
        """Whether a user's picture is joined to x_t; else samples may start from it."""
        return self.joined in PICTURED

    @property
    def reduction(self) -> int:
        """Side of a latent pixel in pixels of the picture."""
        return self.pictures.reduction

    def start(self, strength: float) -> float:
        """The time t at which sampling starts from a picture with noise.

        For a data generator it is the strength itself. For a student it is the largest of its times
        up to the strength, since it was not trained at others and must not get more noise than was
        asked for.

        Raises:
          UserError: the strength is not above 0 and at most 1, or below all times of the student.
        """
        if strength not in STRENGTH:
            raise UserError(f"strength is {strength:g}: use {STRENGTH}")
        if not self.times:
            return strength
        if strength < min(self.times):
            raise UserError(
                f"strength is {strength:g} and the student's lowest time is {min(self.times):g}, "
                f"so no step is left: use {min(self.times):g} or more"
            )
        return max(time for time in self.times if time <= strength)

    def sampling(
        self,
        steps: int | None,
        guidance: float | None,
        shift: float | None,
        strength: float | None = None,
        image_guidance: float | None = None,
    ) -> Sampling:
        """How to sample it; arguments that are None have their defaults.

        Args:
          steps: steps of the whole schedule, of which only those from the strength on are made.
          guidance: guidance scale.
          shift: shift of a data generator's schedule.
          strength: share of the noise if samples start from a picture with noise.
          image_guidance: guidance scale on the picture that is joined by channels.

        Raises:
          UserError: a student was not trained for the steps or the guidance, or has no guidance or
            shift, or the strength is invalid, see `start`; or no shift is given to a pipeline whose
            own schedule cannot be followed.
        """
        if image_guidance not in (None, 1.0) and self.joined in ("", "inpaint"):
            does = "fills holes" if self.joined else "is given no picture"
            raise UserError(
                f"image_guidance is {image_guidance:g} and the network {does}: leave it out"
            )
        whole = self._whole_sampling(steps, guidance, shift, image_guidance)
        return whole if strength is None else whole.starting(self.start(strength))

    def _whole_sampling(
        self,
        steps: int | None,
        guidance: float | None,
        shift: float | None,
        image_guidance: float | None,
    ) -> Sampling:
        if self.times:
            _check_none("shift", shift)
            scale = None
            if self.fixed_guidance is None:
                scale = given_scales(
                    self.generator,
                    (self.guidance_range, self.image_guidance_range),
                    (guidance, image_guidance),
                )
            else:
                fixed = (*scales_of(self.fixed_guidance), 1.0)
                _check_fixed("guidance", guidance, fixed[0])
                _check_fixed("image_guidance", image_guidance, fixed[1])
            steps = len(self.times) if steps is None else steps
            return Sampling.student(steps, self.times, scale, self.sampler)
        if self.unread and shift is None:
            raise UserError(self.unread)
        given = dict(steps=steps, guidance=guidance, shift=shift, image_guidance=image_guidance)
        return Sampling.generator(
            **self.generator | {name: value for name, value in given.items() if value is not None}
        )


def check_text_alone(trained: TrainedModel, flag: str) -> None:
    """Raises UserError if a network also needs pictures, with a flag that only gives prompts."""
    if trained.reads_picture:
        raise UserError(
            f"{trained.place} needs pictures besides prompts, and {flag} gives none: leave {flag} "
            f"out"
        )


def _check_none(name: str, value: float | None) -> None:
    """Raises UserError if a value is given for something that a student does not have."""
    if value not in (None, 1.0):
        raise UserError(
            f"{name} is {value:g} and this student has none: leave it out, or sample the generator"
        )


def _check_fixed(name: str, value: float | None, fixed: float) -> None:
    """Raises UserError if a scale is asked for that is not the fixed one of an export."""
    if value not in (None, fixed):
        raise UserError(
            f"{name} is {value:g} and the student was exported with {fixed:g}: leave it out, or "
            f"sample or export the run with another"
        )


def given_scales(
    defaults: Mapping[str, Any],
    ranges: tuple[tuple[float, ...], tuple[float, ...]],
    wanted: tuple[float | None, float | None],
) -> GivenGuidance:
    """The guidance scales given to a student, for text or for text and image.

    Args:
      defaults: `guidance` and `image_guidance` to use unless others are wanted.
      ranges: lowest and highest of either scale in training; empty for a scale it is not given.
      wanted: either scale that the user asks for, or None.

    Returns:
      the scales; None if the student is not given any.

    Raises:
      UserError: the student was not trained for a scale.
    """
    names = ("guidance", "image_guidance")
    text, image = (
        given_guidance(defaults.get(name, 1.0), scales, scale, name)
        for name, scales, scale in zip(names, ranges, wanted, strict=True)
    )
    return text if text is None or image is None else (text, image)


def given_guidance(
    default: float, scales: tuple[float, ...], wanted: float | None, name: str = "guidance"
) -> float | None:
    """The guidance scale given to a student; None if it was trained without.

    Args:
      default: the scale to use unless another is wanted.
      scales: lowest and highest scale in training; empty if it was trained without.
      wanted: the scale that the user asks for, or None.
      name: name of the scale in errors.

    Raises:
      UserError: the student was not trained for the scale.
    """
    if not scales:
        _check_none(name, wanted)
        return None
    scale = default if wanted is None else wanted
    if not scales[0] <= scale <= scales[1]:
        raise UserError(
            f"{name} is {scale:g} and the student was trained for {scales[0]:g} to "
            f"{scales[1]:g}: use a value in this range"
        )
    return scale


def open_trained(
    place: str,
    model: str | None,
    step: int | None,
    dtype: Any | None,
    mesh: Mesh,
    loras: Sequence[str] = (),
) -> TrainedModel:
    """Opens the network that a path names.

    Args:
      place: a run's workdir, an exported or released pipeline's folder, or owner/name on the hub.
      model: which network of a run, one of `names.MODELS`; default: `ema`.
      step: step of the run's checkpoint; default: the newest.
      dtype: dtype of computation; default: the config's, and bfloat16 for a pipeline.
      mesh: mesh to put the parameters on.
      loras: LoRA files to add to it, each `PATH` or `PATH:SCALE`.

    Raises:
      NotFoundError: nothing is there.
      UserError: it is unusable, a model or step is given for a pipeline, or a LoRA is for another
        network.
    """
    trained = _open(place, model, step, dtype, mesh)
    added = open_loras(trained.family, trained.architecture, loras)
    load = trained.load
    return dataclasses.replace(trained, load=lambda: added(load()), loras=tuple(loras))


def _open(
    place: str, model: str | None, step: int | None, dtype: Any | None, mesh: Mesh
) -> TrainedModel:
    if is_run(expand(place)):
        return _run(expand(place), model or "ema", step, dtype, mesh)
    for name, value in (("model", model), ("step", step)):
        if value is not None:
            raise UserError(
                f"{name} is {value} and {place} is not the workdir of a run: leave it out, or name "
                f"a workdir"
            )
    return _released(place, jnp.bfloat16 if dtype is None else dtype, mesh)


def is_run(path: Path) -> bool:
    """Whether a path is the workdir of a run, and not another folder or a name on the hub."""
    if not (path / "config.json").is_file() or (path / PIPELINE_INDEX).is_file():
        return False
    # A transformer's folder has a config.json too, but with the name of its class.
    return '"_class_name"' not in (path / "config.json").read_text(errors="replace")


def _run(
    workdir: Path, model: str, step: int | None, dtype: Any | None, mesh: Mesh
) -> TrainedModel:
    config = read(workdir)
    is_generator = model == "generator"
    architecture = (generator_architecture if is_generator else student_architecture)(config)
    if is_generator and step is not None:
        raise UserError(f"step is {step} and a data generator has one state only: leave it out")

    if is_generator:
        found = config.pretrain.steps if pretrains(config) else None
    else:
        found = student_step(config, workdir, step)

    def load() -> Params:
        if found is None or is_generator:
            return load_generator(config, workdir, mesh)
        return load_student_weights(config, workdir, mesh, model, found)

    return TrainedModel(
        place=str(workdir),
        model=model,
        family=family_of(config),
        architecture=_computing(architecture, dtype),
        times=() if is_generator else tuple(config.distil.timesteps),
        sampler=METHODS[config.distil.objective].sampler,
        generator=config.synthesize.sampling,
        buckets=trained_buckets(config, workdir),
        pictures=pictures_of_run(config, family_of(config)),
        encoder=lambda: text_encoder(config, mesh, batch_divisor(mesh)),
        load=load,
        step=found,
        guidance_range=() if is_generator else tuple(config.synthesize.guidance_range),
        image_guidance_range=() if is_generator else tuple(config.synthesize.image_guidance_range),
        joined=config.data.joined,
        null=lambda: shards_of(config, workdir, "encoded").null,
    )


def _released(place: str, dtype: Any, mesh: Mesh) -> TrainedModel:
    kind = family_of_pipeline(place)
    weights = kind.open_weights(place, dtype)
    facts = read_facts(fetch_pipeline(place))
    released = kind.released(place)
    if released.student and "times" not in facts:
        raise UserError(
            f"{place} is a student, by its scheduler, but has no {FACTS} with its times: copy "
            f"that file from the folder that ladd_jax.export wrote, or sample that folder"
        )
    pictures = of_autoencoder(kind, place)
    in_channels, channels = weights.config.in_channels, weights.config.out_channels
    said = facts.get("joined") or joined_of_pipeline(place)
    # The defaults of the pipeline's own scheduler.
    defaults = Synthesize(sampler="euler", steps=50).sampling
    if released.shift is not None:
        defaults["shift"] = released.shift
    return TrainedModel(
        place=place,
        model="released",
        family=kind,
        architecture=weights.config,
        times=tuple(facts.get("times", ())),
        # Older exports do not name the sampler, and all of their students have this one.
        sampler=facts.get("sampler", "consistency"),
        generator=defaults,
        buckets=tuple(map(Bucket.parse, facts.get("buckets", ())))
        or _table(kind.sides(weights.config)[0], released.side, pictures.reduction),
        pictures=pictures,
        encoder=lambda: kind.load_text_encoder(
            place,
            dtype,
            mesh,
            facts.get("text_length", released.text_length),
            batch_divisor(mesh),
            "",
        ),
        load=lambda: weights.load(mesh),
        step=facts.get("step"),
        fixed_guidance=_fixed(facts),
        joined=joined_kind(place, said, in_channels - channels, channels),
        unread=released.unread,
    )


def _computing(architecture: Any, dtype: Any | None) -> Any:
    return architecture if dtype is None else dataclasses.replace(architecture, dtype=dtype)


def _fixed(facts: Mapping[str, Any]) -> GivenGuidance:
    """The fixed guidance scales of an export; None if it has none."""
    scale: float | None = facts.get("guidance")
    if scale is None or "image_guidance" not in facts:
        return scale
    return scale, facts["image_guidance"]


def _are_times(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(time) in (int, float) and 0 < time <= 1 for time in value
    )


def _are_buckets(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and Bucket.is_name(name) for name in value
    )


_FACTS: dict[str, Callable[[Any], bool]] = {
    "times": _are_times,
    "sampler": lambda value: value in [method.sampler for method in METHODS.values()],
    "buckets": _are_buckets,
    "text_length": lambda value: type(value) is int and 0 < value < 2**31,
    "step": lambda value: type(value) is int and value >= 0,
    "guidance": lambda value: is_number(value, NOT_NEGATIVE),
    "image_guidance": lambda value: is_number(value, NOT_NEGATIVE),
    "joined": lambda value: isinstance(value, str),
}
"""Facts that an export states, each with a check of its value."""


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts that an exported student's folder states; empty for other pipelines.

    Raises:
      DamagedError: the file with the facts is damaged.
    """
    file = folder / FACTS
    if not file.is_file():
        return {}
    facts = read_json(file, "export again")
    for name, is_right in _FACTS.items():
        if name in facts and not is_right(facts[name]):
            raise DamagedError(
                f"{file} is damaged (its {name} is {str(facts[name])[:60]}): export again"
            )
    return facts


def _table(step: int, side: int, reduction: int) -> tuple[Bucket, ...]:
    """Buckets with the area of a square of latents of a given side, in multiples of `step`."""
    pixels = side * reduction
    smallest = step * reduction
    return tuple(bucket_table(pixels**2, smallest if pixels < 512 else 64, reduction=reduction))

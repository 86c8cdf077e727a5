"""What can be sampled: the networks of a run, and released pipelines."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.architectures import generator_architecture, student_architecture
from ladd_jax.config.fields import Synthesize
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket, bucket_table
from ladd_jax.diffusion.generate import Sampling
from ladd_jax.errors import UserError
from ladd_jax.models.base import Params
from ladd_jax.models.random_text import TextEncoder
from ladd_jax.models.sd3.encoder_weights import load_autoencoder, load_text_encoders
from ladd_jax.models.sd3.text import SD3TextEncoder
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.models.sd3.weights import open_mmdit
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.stages import load as stages
from ladd_jax.stages.encode import CLIP_LENGTH, text_encoder
from ladd_jax.weights.source import fetch_pipeline, find

FACTS = "ladd_jax.json"
"""What an export says of itself beyond the files of diffusers: how to sample it, its buckets."""

MODELS = (*stages.STUDENTS, "generator")

_PIXELS = 8
"""On a side of a latent pixel where latents are the picture."""

Encoder = TextEncoder | SD3TextEncoder
Decoder = Callable[[np.ndarray], np.ndarray]
"""From one latent `[h, w, C]` to its picture `[H, W, 1 or 3]` in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, and what stands around it. What is large is read when it is asked for.

    Attributes:
      place: workdir, folder or repository.
      model: `ema`, `student`, `generator`, or `released`.
      architecture: of the network, and its dtypes.
      times: that it was trained at; empty for a data generator, which any time serves.
      generator: default steps, guidance and shift of a data generator.
      buckets: of its training.
      reduction: pixels on a side of a latent pixel.
      decode: latents to pictures.
      encoder: makes the text encoder.
      load: gives the parameters.
      step: of the checkpoint that they are from, if they are from one.
    """

    place: str
    model: str
    architecture: MMDiTConfig
    times: tuple[float, ...]
    generator: dict[str, Any]
    buckets: tuple[Bucket, ...]
    reduction: int
    decode: Decoder
    encoder: Callable[[], Encoder]
    load: Callable[[], Params]
    step: int | None

    def sampling(self, steps: int | None, guidance: float | None, shift: float | None) -> Sampling:
        """How to sample it; what is None has its default.

        Raises:
          UserError: a number of steps that the student was not trained for, or guidance or shift
            of a student, which has none.
        """
        if self.times:
            for name, value in (("guidance", guidance), ("shift", shift)):
                if value not in (None, 1.0):
                    raise UserError(
                        f"{name} is {value:g} and a student has none: leave it out, or sample the "
                        f"generator"
                    )
            return Sampling.student(len(self.times) if steps is None else steps, self.times)
        given = dict(steps=steps, guidance=guidance, shift=shift)
        return Sampling.teacher(
            **self.generator | {name: value for name, value in given.items() if value is not None}
        )


def open_subject(
    place: str, model: str | None, step: int | None, dtype: Any | None, mesh: Mesh
) -> Subject:
    """Finds what a path names.

    Args:
      place: a run's workdir, an exported or released pipeline's folder, or owner/name of the hub.
      model: one of `MODELS`, of a run; default: `ema`.
      step: of the run's checkpoint; default: the newest.
      dtype: of computation; default: the config's, and bfloat16 for a pipeline.
      mesh: where to lay the parameters.

    Raises:
      NotFoundError: nothing is there.
      UserError: it is of no use, or a model or step is asked of a pipeline.
    """
    if _is_run(Path(place)):
        return _run(Path(place), model or "ema", step, dtype, mesh)
    for name, value in (("model", model), ("step", step)):
        if value is not None:
            raise UserError(
                f"{name} is {value} and {place} is no workdir of a run: leave it out, or name a "
                f"workdir"
            )
    return _released(place, jnp.bfloat16 if dtype is None else dtype, mesh)


def _is_run(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    # A transformer's folder has a file of this name, too, which says its class.
    return '"_class_name"' not in (path / "config.json").read_text(errors="replace")


def _run(workdir: Path, model: str, step: int | None, dtype: Any | None, mesh: Mesh) -> Subject:
    config = read(workdir)
    is_generator = model == "generator"
    architecture = (generator_architecture if is_generator else student_architecture)(config)
    if is_generator and step is not None:
        raise UserError(f"step is {step} and a data generator has one state only: leave it out")

    if is_generator:
        found = None if config.weights else config.pretrain.steps
    else:
        found = stages.student_step(config, workdir, step)

    def load() -> Params:
        if found is None or is_generator:
            return stages.load_generator(config, workdir, mesh)
        return stages.load_student_weights(config, workdir, mesh, model, found)

    reduction, decode = _decoder(config.weights) if config.weights else (_PIXELS, _enlarge)
    return Subject(
        place=str(workdir),
        model=model,
        architecture=_computing(architecture, dtype),
        times=() if is_generator else tuple(config.distil.timesteps),
        generator=_sampled(config.synthesize),
        buckets=tuple(Bucket.parse(name) for name in config.data.buckets),
        reduction=reduction,
        decode=decode,
        encoder=lambda: text_encoder(config, mesh, batch_divisor(mesh)),
        load=load,
        step=found,
    )


def _released(place: str, dtype: Any, mesh: Mesh) -> Subject:
    weights = open_mmdit(place, dtype)
    folder = fetch_pipeline(place)
    reduction, decode = _decoder(place)
    facts = _facts(folder)
    defaults = _sampled(Synthesize())
    return Subject(
        place=place,
        model="released",
        architecture=weights.config,
        times=tuple(facts.get("times", ())),
        generator=defaults | {"shift": _shift(folder, defaults["shift"])},
        buckets=tuple(map(Bucket.parse, facts.get("buckets", ())))
        or _table(place, weights.config, reduction),
        reduction=reduction,
        decode=decode,
        encoder=lambda: load_text_encoders(
            folder,
            dtype,
            mesh,
            t5_length=facts.get("text_length", CLIP_LENGTH + 256) - CLIP_LENGTH,
            batch=batch_divisor(mesh),
        ),
        load=lambda: weights.load(mesh),
        step=facts.get("step"),
    )


def _sampled(settings: Synthesize) -> dict[str, Any]:
    """How a data generator is sampled where nobody says otherwise."""
    return dict(steps=settings.steps, guidance=settings.guidance, shift=settings.shift)


def _computing(architecture: MMDiTConfig, dtype: Any | None) -> MMDiTConfig:
    return architecture if dtype is None else dataclasses.replace(architecture, dtype=dtype)


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / FACTS
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): export again") from error


def _shift(folder: Path, default: float) -> float:
    """Of the schedule that comes with a pipeline."""
    file = folder / "scheduler" / "scheduler_config.json"
    return float(json.loads(file.read_text()).get("shift", default)) if file.is_file() else default


def _table(place: str, architecture: MMDiTConfig, reduction: int) -> tuple[Bucket, ...]:
    """Buckets of the area that a pipeline's transformer says it is for."""
    file = find(place).config
    values = json.loads(file.read_text()) if file else {}
    side = values.get("sample_size", 128) * reduction
    smallest = architecture.patch * reduction
    return tuple(bucket_table(side**2, smallest if side < 512 else 64, reduction=reduction))


def _decoder(weights: str) -> tuple[int, Decoder]:
    autoencoder, params = load_autoencoder(fetch_pipeline(weights), jnp.float32)
    program = jax.jit(autoencoder.decode)

    def decode(latents: np.ndarray) -> np.ndarray:
        return np.asarray(program(params, latents[None])[0])

    return autoencoder.config.reduction, decode


def _enlarge(latents: np.ndarray) -> np.ndarray:
    return latents.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)

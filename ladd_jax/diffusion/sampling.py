"""Latents for prompts, in batches of one fixed size on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.diffusion.flow import interpolate
from ladd_jax.diffusion.samplers import (
    ALWAYS,
    Levels,
    Velocity,
    consistency,
    dpmpp_2m,
    euler,
    guided,
    linear_sigmas,
    sample_noise,
    student_sigmas,
)
from ladd_jax.models.base import GUIDANCE, Cond
from ladd_jax.parallel.compiler_options import forward_options
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, lay, replicated
from ladd_jax.ranges import check_choice


@dataclasses.dataclass(frozen=True)
class SamplerKind:
    """A sampler of the table.

    Attributes:
      function: `function(velocity, noise, sigmas) -> x_0`, like those of `diffusion.samplers`; if
        `keyed`, it is also given the raw PRNG keys of the samples `[B, 2]`.
      passes: evaluations of the velocity in one step, which goes from a level to the next.
      keyed: whether it draws noise on the way, for each sample from the sample's own key.
      students_alone: whether only students are sampled with it, and data generators are not.
    """

    function: Callable[..., jax.Array]
    passes: int = 1
    keyed: bool = False
    students_alone: bool = False

    def __call__(
        self, velocity: Velocity, noise: jax.Array, sigmas: Levels, keys: jax.Array
    ) -> jax.Array:
        """Samples x_0 like `noise`; see `function`."""
        own = (keys,) if self.keyed else ()
        return self.function(velocity, noise, sigmas, *own)


SAMPLERS = {
    "euler": SamplerKind(euler),
    "dpmpp_2m": SamplerKind(dpmpp_2m),
    "consistency": SamplerKind(consistency, keyed=True, students_alone=True),
}
"""Samplers by name."""


def generator_samplers() -> tuple[str, ...]:
    """Names of the samplers of a data generator."""
    return tuple(name for name, kind in SAMPLERS.items() if not kind.students_alone)


GivenGuidance = float | tuple[float, float] | None
"""Guidance scales that a student takes as an input: one on the text, or a pair on text and image;
None for a student that takes none."""


def scales_of(given: GivenGuidance) -> tuple[float, ...]:
    """The given scales as a tuple: empty, the one on the text, or those on text and image."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
      sampler: a name of `SAMPLERS`.
      sigmas: noise levels down to 0, from 1 or from the level that a given picture is noised to.
      guidance: scale of classifier-free guidance; 1 for none.
      guidance_interval: the first and the last t with guidance.
      given_guidance: the scale, or the scales on text and image, for a student that takes them as
        an input; None for others.
      image_guidance: scale of the guidance on a picture that is joined by channels; 1 for none.

    Raises:
      UserError: there is no such sampler.
    """

    sampler: str
    sigmas: tuple[float, ...]
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = ALWAYS
    # Left out of the repr: samples of a data generator are found again by it, and have none.
    given_guidance: GivenGuidance = dataclasses.field(default=None, repr=False)
    image_guidance: float = dataclasses.field(default=1.0, repr=False)

    def __post_init__(self) -> None:
        check_choice(self.sampler, "sampler", *SAMPLERS)

    @classmethod
    def generator(
        cls,
        steps: int,
        guidance: float,
        shift: float,
        sampler: str = "euler",
        guidance_interval: tuple[float, float] = ALWAYS,
        image_guidance: float = 1.0,
    ) -> "Sampling":
        """Over evenly spaced, shifted levels, with guidance."""
        levels = linear_sigmas(steps, shift)
        return cls(sampler, levels, guidance, guidance_interval, image_guidance=image_guidance)

    @classmethod
    def student(
        cls,
        steps: int,
        times: tuple[float, ...],
        guidance: GivenGuidance = None,
        sampler: str = "consistency",
    ) -> "Sampling":
        """Over the student's training times, in one pass a step.

        Args:
          steps: number of steps.
          times: the student's training times.
          guidance: the scale for a student that was trained to take one, or both scales for one
            that was trained to take two.
          sampler: the sampler of the student's `Method`.
        """
        return cls(sampler, student_sigmas(steps, times), given_guidance=guidance)

    @property
    def passes(self) -> int:
        """Forward passes of the network for one sample: one for each evaluation of the velocity,
        two if its step begins at a guided level, or three if the guidance is on the image, too."""
        # In float32, as the program compares them.
        levels = np.asarray(self.sigmas[:-1], np.float32)
        low, high = np.asarray(self.guidance_interval, np.float32)
        further = 2 if self.image_guidance != 1 else int(self.guidance != 1)
        of_steps = len(levels) + further * int(np.sum((low <= levels) & (levels <= high)))
        return SAMPLERS[self.sampler].passes * of_steps

    def starting(self, t: float) -> "Sampling":
        """The same from t on, for samples that start from x_0 with that much noise.

        This is SDEdit (Meng et al. 2021). At t = 1 nothing is left of x_0, and all levels stay.
        """
        return dataclasses.replace(self, sigmas=(t, *(s for s in self.sigmas if s < t)))

    def padded(self, levels: int) -> "Sampling":
        """The same with zeros appended to make up `levels` levels; a step at 0 changes nothing.

        Ways of sampling with the same number of levels share a program.
        """
        return dataclasses.replace(self, sigmas=self.sigmas + (0.0,) * (levels - len(self.sigmas)))


class Sampler:
    """Draws samples from one network, with a program per shape, way of sampling and level count.

    A sample depends on its own seed and prompt alone: the batch around it does not matter.
    """

    def __init__(
        self,
        model: Callable[..., jax.Array],
        null: dict[str, np.ndarray],
        mesh: Mesh,
        batch_size: int,
    ):
        """Prepares sampling.

        Args:
          model: `model(params, x, t, cond) -> v`.
          null: arrays `[...]` of the empty prompt, by name.
          mesh: mesh whose `data` and `fsdp` axes the batch is sharded over.
          batch_size: number of samples in each call of a program; rounded up to a multiple of those
            axes.
        """
        self._model = model
        whole = replicated(mesh)
        self._null = {name: lay(array, whole) for name, array in null.items()}
        self._mesh = mesh
        self._batch = -(-batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
        # Each process returns all samples, including those from other processes' devices.
        self._program: Any = jax.jit(
            self._sample,
            static_argnames=("shape", "sampler", "guidance", "guidance_interval", "image_guidance"),
            out_shardings=whole,
            compiler_options=forward_options(mesh.devices.flat[0].device_kind),
        )

    @property
    def program_count(self) -> int:
        """Programs compiled so far."""
        return self._program._cache_size()

    def _sample(
        self,
        params: Any,
        null: Cond,
        keys: jax.Array,
        cond: Cond,
        sigmas: jax.Array,
        shape: tuple[int, ...],
        sampler: str,
        scales: jax.Array | None,
        x_0: jax.Array | None,
        guidance: float,
        guidance_interval: tuple[float, float],
        image_guidance: float,
    ) -> jax.Array:
        def model(*args: Any) -> jax.Array:
            return self._model(params, *args)

        own: tuple[float | jax.Array, float | jax.Array] = (guidance, image_guidance)
        if scales is not None:
            own = (scales[:, 0], scales[:, 1] if scales.shape[1] > 1 else image_guidance)
        velocity = guided(model, cond, null, own[0], guidance_interval, own[1])
        x = sample_noise(keys, 0, shape)
        if x_0 is not None:
            x = interpolate(x_0, x, jnp.full(x.shape[:1], sigmas[0]))
        return SAMPLERS[sampler](velocity, x, sigmas, keys)

    def __call__(
        self,
        params: Any,
        seeds: np.ndarray,
        cond: dict[str, np.ndarray],
        shape: tuple[int, int, int],
        sampling: Sampling,
        progress: Callable[[int], Any] = lambda done: None,
        scales: np.ndarray | None = None,
        x_0: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples.

        Args:
          params: parameters of the network.
          seeds: uint32 `[n, 2]`, one raw PRNG key for each sample.
          cond: arrays `[n, ...]` by name.
          shape: (H, W, C) of a latent.
          sampling: sampler, levels and guidance.
          progress: called after each batch with the number of samples in it.
          scales: float32 `[n, 1]`, guidance of each sample, instead of the sampling's, or `[n, 2]`,
            its guidance on the text and on the image.
          x_0: float32 `[n, H, W, C]`, latents from which the samples start, noised to the first
            level; default: they start from noise alone.

        Returns:
          float32 `[n, H, W, C]`.
        """
        if given := scales_of(sampling.given_guidance):
            told = np.tile(np.asarray(given, np.float32), (len(seeds), 1))
            cond = cond | {GUIDANCE: told}
        sharding = batch_sharding(self._mesh)
        sigmas = lay(np.asarray(sampling.sigmas, np.float32), replicated(self._mesh))
        outputs = []
        for start in range(0, len(seeds), self._batch):
            count = len(seeds[start : start + self._batch])
            keys, own, own_scales, own_x_0 = jax.tree.map(
                lambda array, start=start: lay(
                    np.resize(array[start : start + self._batch], (self._batch, *array.shape[1:])),
                    sharding,
                ),
                (seeds, cond, scales, x_0),
            )
            with jax.set_mesh(self._mesh):
                latents = self._program(
                    params, self._null, keys, own, sigmas, scales=own_scales, x_0=own_x_0,
                    shape=tuple(shape), sampler=sampling.sampler, guidance=sampling.guidance,
                    guidance_interval=tuple(sampling.guidance_interval),
                    image_guidance=sampling.image_guidance,
                )  # fmt: skip
            outputs.append(np.asarray(latents)[:count])
            progress(count)
        return np.concatenate(outputs)


def seeds(seed: int, *indices: np.ndarray | int) -> np.ndarray:
    """Raw PRNG keys uint32 `[n, 2]` of samples from a seed and whole numbers (which broadcast)."""
    rows = np.broadcast_arrays(*(np.atleast_1d(index) for index in indices))
    return np.array(
        [
            np.random.SeedSequence((seed, *map(int, row))).generate_state(2)
            for row in zip(*rows, strict=True)
        ],
        np.uint32,
    )

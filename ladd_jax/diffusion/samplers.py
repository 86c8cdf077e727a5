"""Samplers from noise to data, each one `lax.scan` over explicit noise levels.

`velocity(x, t)` takes `x [B, H, W, C]` and `t float32 [B]` and returns v like `x`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.diffusion.flow import expand, interpolate, predict_x0
from ladd_jax.diffusion.times import shift
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS, Cond

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
Levels = Sequence[float] | jax.Array

ALWAYS = (0.0, 1.0)
"""The interval that contains all t."""


def linear_sigmas(steps: int, factor: float = 1.0) -> tuple[float, ...]:
    """`steps` + 1 levels from 1 to 0, evenly spaced, then shifted: the Euler sampler's schedule."""
    return tuple(float(s) for s in shift(np.linspace(1.0, 0.0, steps + 1), factor))


def student_sigmas(steps: int, times: Sequence[float]) -> tuple[float, ...]:
    """`steps` of the student's training times, evenly picked from the noisiest on, and 0.

    Raises:
      UserError: the number of steps does not divide the number of training times.
    """
    ordered = sorted(times, reverse=True)
    if steps < 1 or len(ordered) % steps:
        valid = [n for n in range(1, len(ordered) + 1) if len(ordered) % n == 0]
        raise UserError(
            f"{steps} steps do not divide the {len(ordered)} training times of the student: "
            f"use one of {', '.join(map(str, valid))}"
        )
    return (*ordered[:: len(ordered) // steps], 0.0)


def guided(
    model: Callable[..., jax.Array],
    cond: Cond,
    null: Cond,
    scale: float | jax.Array,
    interval: tuple[float, float] = ALWAYS,
    image_scale: float | jax.Array = 1.0,
) -> Velocity:
    """Velocity with classifier-free guidance: v(null) + scale (v(cond) - v(null)).

    For a network that is also given a picture I by channels, an image scale s_I adds guidance on
    the picture (Brooks et al. 2023, equation 3), beside the scale s_T on the text T:

        v(0, 0) + s_I (v(0, I) - v(0, 0)) + s_T (v(T, I) - v(0, I))

    At s_I = 1 this is the guidance on the text alone.

    Args:
      model: `model(x, t, cond)`.
      cond: arrays `[B, ...]` of the prompts.
      null: arrays `[...]` of the empty prompt; arrays that it does not name stay as in `cond`.
      scale: s_T, one number or float32 `[B]` with one for each sample. The number 1 gives the
        unguided velocity, in one pass instead of two.
      interval: the first and the last t that are guided (Kynkäänniemi et al. 2024); at others both
        scales are 1. If all t of a batch are outside, only one pass is made.
      image_scale: s_I, one number or float32 `[B]`; anything but the number 1 costs a further pass.
    """

    def unguided(x: jax.Array, t: jax.Array) -> jax.Array:
        return model(x, t, cond)

    on_image = _guides(image_scale)
    if not on_image and not _guides(scale):
        return unguided
    without_text = {
        name: jnp.broadcast_to(null.get(name, array), array.shape) for name, array in cond.items()
    }
    conds = [cond, without_text]
    if on_image:
        conds.append(without_text | {CHANNELS: jnp.zeros_like(cond[CHANNELS])})
    passes = len(conds)
    joined = {name: jnp.concatenate([each[name] for each in conds]) for name in cond}

    def velocity(
        x: jax.Array,
        t: jax.Array,
        scale: float | jax.Array = scale,
        image_scale: float | jax.Array = image_scale,
    ) -> jax.Array:
        v = model(jnp.concatenate([x] * passes), jnp.concatenate([t] * passes), joined)
        v_cond, v_null, *v_neither = jnp.split(v, passes)
        v_guided = v_null + _like(scale, x) * (v_cond - v_null)
        for v_0 in v_neither:
            v_guided += (_like(image_scale, x) - 1) * (v_null - v_0)
        return v_guided

    if interval == ALWAYS:
        return velocity

    def within(x: jax.Array, t: jax.Array) -> jax.Array:
        inside = (interval[0] <= t) & (t <= interval[1])
        scales = tuple(jnp.where(inside, each, 1.0) for each in (scale, image_scale))
        # Both branches are compiled and one of them runs.
        return jax.lax.cond(
            jnp.any(inside), lambda: velocity(x, t, *scales), lambda: unguided(x, t)
        )

    return within


def _guides(scale: float | jax.Array) -> bool:
    return isinstance(scale, jax.Array) or scale != 1.0


def _like(scale: float | jax.Array, x: jax.Array) -> float | jax.Array:
    """A scale that multiplies `x [B, H, W, C]`."""
    return expand(scale, x) if isinstance(scale, jax.Array) else scale


def euler(velocity: Velocity, noise: jax.Array, sigmas: Levels) -> jax.Array:
    """First-order integration of the probability flow along `sigmas`, which end at the data (0)."""
    levels = jnp.asarray(sigmas, jnp.float32)

    def step(x: jax.Array, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sigma, after = level
        t = jnp.full(x.shape[:1], sigma)
        return x + (after - sigma) * velocity(x, t), None

    return jax.lax.scan(step, noise, (levels[:-1], levels[1:]))[0]


def dpmpp_2m(velocity: Velocity, noise: jax.Array, sigmas: Levels) -> jax.Array:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) on x_t = (1 - t) x_0 + t eps.

    It takes one pass of the network a step, as `euler` does, and is of second order since it reuses
    the prediction of the step before. The first two steps and the last are of first order, because
    levels 1 and 0 have no finite log-SNR.
    """
    levels = jnp.asarray(sigmas, jnp.float32)

    def log_snr(sigma: jax.Array) -> jax.Array:
        inside = jnp.clip(sigma, 1e-6, 1 - 1e-6)
        return jnp.log((1 - inside) / inside)

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array], level: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        (x, x_0_before, before), (sigma, after) = carry, level
        t = jnp.full(x.shape[:1], sigma)
        x_0 = predict_x0(x, velocity(x, t), t)
        second = (before < 1) & (after > 0)
        h, h_before = log_snr(after) - log_snr(sigma), log_snr(sigma) - log_snr(before)
        ratio = h / (2 * jnp.where(second, h_before, 1.0))
        extrapolated = x_0 + jnp.where(second, ratio, 0.0) * (x_0 - x_0_before)
        kept = after / sigma
        x = kept * x + (1 - after - (1 - sigma) * kept) * extrapolated
        return (x, x_0, sigma), None

    start = (noise, jnp.zeros_like(noise), jnp.ones_like(levels[0]))
    return jax.lax.scan(step, start, (levels[:-1], levels[1:]))[0][0]


def consistency(velocity: Velocity, noise: jax.Array, sigmas: Levels, keys: jax.Array) -> jax.Array:
    """Predicts x_0, renoises to the next level with fresh noise, and so on (Song et al. 2023).

    Args:
      velocity: the student's velocity.
      noise: `[B, H, W, C]`, x at `sigmas[0]` = 1.
      sigmas: levels from 1 down; the student predicts at all but the last, which is 0.
      keys: raw PRNG keys `[B, 2]`, one for the fresh noise of each sample.
    """
    levels = jnp.asarray(sigmas, jnp.float32)

    def step(
        x: jax.Array, numbers: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        number, sigma, after = numbers
        t = jnp.full(x.shape[:1], sigma)
        x_0 = predict_x0(x, velocity(x, t), t)
        eps = sample_noise(keys, number, x.shape[1:])
        return interpolate(x_0, eps, jnp.full_like(t, after)), None

    numbers = (jnp.arange(1, len(levels)), levels[:-1], levels[1:])
    return jax.lax.scan(step, noise, numbers)[0]


def sample_noise(keys: jax.Array, number: int | jax.Array, shape: Sequence[int]) -> jax.Array:
    """Standard normal noise `[B, *shape]`, each sample's from its own key `[B, 2]`.

    So a sample depends on its key alone and not on what else is in its batch. `number` counts the
    draws of one sample; 0 is the first, pure noise.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)

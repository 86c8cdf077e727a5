"""`python -m benchmarks.step [--json=FILE]`: the fused step against two separate programs.

The baseline makes the same update with the same losses in two jitted programs, one for the heads
and one for the student, each with its own forward passes. The updates are compared first; then both
variants are timed alternately in one process.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks.flops import matrix_flops
from benchmarks.result_files import write_result
from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.models.base import Params
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES, Due, fake_loss, real_loss
from ladd_jax.objectives.base import Batch, TrainState
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.training.ema import update_ema
from ladd_jax.training.optimizers import Optimizer

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_DEPTH = flags.DEFINE_integer("depth", 6, "Blocks of teacher and student.")
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the blocks.")
_SIDE = flags.DEFINE_integer("side", 32, "Side of the latents.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images in a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps of each variant.")

TOLERANCE = 1e-4
"""Allowed difference of two updates over the largest element: float32 sums differ by order."""

Frozen = dict[str, Params]


def two_programs(objective: LADD, critic: FeatureCritic) -> tuple[Any, Any]:
    """(heads' program, student's program) that together make the fused step's update."""
    form = ADVERSARIAL_LOSSES[objective.loss]

    def inputs(state: TrainState, batch: Batch) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        student_key, renoise_key = jax.random.split(key, 2)
        x_t, t = objective.student_input(student_key, batch["latents"], state.step)
        return x_t, t, objective.renoise(renoise_key, batch["latents"], t)

    def generate(params: Params, x_t: jax.Array, t: jax.Array, batch: Batch) -> jax.Array:
        return predict_x0(x_t, objective.student(params, x_t, t, batch["cond"]), t)

    def update_heads(state: TrainState, frozen: Frozen, batch: Batch) -> Any:
        x_t, t, (fake_noise, real_noise) = inputs(state, batch)
        x_0, cond = batch["latents"], batch["cond"]
        x0_hat = generate(state.params, x_t, t, batch)
        on_real = real_loss(form, objective.heads_penalty, Due(state.step))
        fake, _ = critic.judge(state.heads, frozen, x0_hat, fake_noise, cond, fake_loss(form))
        real, _ = critic.judge(state.heads, frozen, x_0, real_noise, cond, on_real)
        updates, heads_optimizer = objective.heads_optimizer.build().update(
            jax.tree.map(jnp.add, fake, real), state.heads_optimizer, state.heads
        )
        # Returns these alone, since the rest of the state would be copied.
        return optax.apply_updates(state.heads, updates), heads_optimizer

    def update_student(state: TrainState, frozen: Frozen, batch: Batch) -> TrainState:
        x_t, t, ((eps, t_hat), _) = inputs(state, batch)
        cond, teacher = batch["cond"], critic.teacher
        grid, summary = teacher.grid(batch["latents"]), teacher.summary(cond)

        def loss(params: Params) -> jax.Array:
            x = interpolate(generate(params, x_t, t, batch), eps, t_hat)
            _, features = teacher(frozen["teacher"], x, t_hat, cond, tap=lambda _, tokens: tokens)

            def through_head(total: jax.Array, item: Any) -> tuple[jax.Array, None]:
                logits = critic.head(item[0], item[1], grid, t_hat, summary)
                return total + jnp.mean(form.student(logits)), None

            total, _ = jax.lax.scan(through_head, jnp.zeros(()), (state.heads["heads"], features))
            return total / len(critic.hooked)

        gradient = jax.grad(loss)(state.params)
        updates, optimizer = objective.optimizer.build().update(
            gradient, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            ema=update_ema(state.ema, params, objective.ema_decay, state.step),
            optimizer=optimizer,
        )

    return update_heads, update_student


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two trees over the largest absolute value."""
    leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    scale = max(float(jnp.max(jnp.abs(y))) for _, y in leaves)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in leaves) / scale


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    side, batch_size = _SIDE.value, _BATCH.value
    config = MMDiTConfig(
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_heads=_WIDTH.value // 64,
        context_width=256,
        pooled_width=256,
        remat="none",
    )
    model = mmdit(config)
    head_config = HeadConfig(config.width, config.pooled_width)
    critic = FeatureCritic(model, head(head_config), head_stack(head_config, config.depth))
    objective = LADD(
        student=model,
        critic=critic,
        # A large epsilon keeps updates proportional to gradients, so that they can be compared.
        optimizer=Optimizer(1e-2, beta1=0.0, epsilon=1.0),
        heads_optimizer=Optimizer(1e-2, beta1=0.0, epsilon=1.0),
    )

    def init(key: jax.Array) -> tuple[TrainState, Frozen]:
        keys = jax.random.split(key, 3)
        teacher = model.init(keys[0])
        # Fresh adaLN is zero: every block would be the identity, with no gradient inside.
        shake = jax.random.split(keys[1], len(jax.tree.leaves(teacher)))
        shake = jax.tree.unflatten(jax.tree.structure(teacher), list(shake))
        teacher = jax.tree.map(
            lambda leaf, k: leaf + 0.02 * jax.random.normal(k, leaf.shape), teacher, shake
        )
        return objective.init(keys[2], teacher), {"teacher": teacher}

    state, frozen = jax.jit(init)(jax.random.PRNGKey(0))
    keys = jax.random.split(jax.random.PRNGKey(1), 3)
    batch = {
        "latents": jax.random.normal(keys[0], (batch_size, side, side, config.in_channels)),
        "cond": {
            "context": jax.random.normal(keys[1], (batch_size, 77, config.context_width)),
            "pooled": jax.random.normal(keys[2], (batch_size, config.pooled_width)),
        },
    }
    programs = two_programs(objective, critic)
    flops = {
        "fused": matrix_flops(objective.step, state, frozen, batch),
        "two_programs": sum(matrix_flops(p, state, frozen, batch) for p in programs),
    }
    # States are donated, as in training.
    fused = jax.jit(objective.step, donate_argnums=0)
    one, two = jax.jit(programs[0]), jax.jit(programs[1], donate_argnums=0)

    def run_fused(state: TrainState) -> TrainState:
        return fused(state, frozen, batch)[0]

    def run_two(state: TrainState) -> TrainState:
        heads, heads_optimizer = one(state, frozen, batch)
        state = dataclasses.replace(state, heads=heads, heads_optimizer=heads_optimizer)
        return two(state, frozen, batch)

    runs = {"fused": run_fused, "two_programs": run_two}
    states = {name: run(jax.tree.map(jnp.copy, state)) for name, run in runs.items()}
    changes = {
        name: (
            jax.tree.map(jnp.subtract, result.params, state.params),
            jax.tree.map(jnp.subtract, result.heads, state.heads),
        )
        for name, result in states.items()
    }
    error = max(
        difference(a, b) for a, b in zip(changes["fused"], changes["two_programs"], strict=True)
    )
    if error > TOLERANCE:
        raise SystemExit(f"the updates differ by {error:.1e}, more than {TOLERANCE:.0e}")

    seconds: dict[str, list[float]] = {"fused": [], "two_programs": []}
    for _ in range(_REPEATS.value):
        for name, run in runs.items():
            start = time.perf_counter()
            states[name] = jax.block_until_ready(run(states[name]))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "fused_over_two_programs": {
            "time": medians["fused"] / medians["two_programs"],
            "flops": flops["fused"] / flops["two_programs"],
            "update_difference": error,
            "tolerance": TOLERANCE,
        },
        "seconds": {
            name: {"median": medians[name], "min": min(values), "max": max(values)}
            for name, values in seconds.items()
        },
        "matrix_flops": flops,
        "setting": {
            "depth": config.depth,
            "width": config.width,
            "latents": [batch_size, side, side, config.in_channels],
            "remat": config.remat,
            "dtype": "float32",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        },
    }
    for name in seconds:
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"{name:>13}: {medians[name]:7.3f} s ({low:.3f} to {high:.3f}), "
            f"{flops[name] / 1e9:8.1f} GFLOP in matrix products"
        )
    ratio = result["fused_over_two_programs"]
    print(
        f"fused / two programs: time {ratio['time']:.3f}, FLOPs {ratio['flops']:.3f}, "
        f"updates differ by {error:.1e}"
    )
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

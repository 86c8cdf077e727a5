"""Orders of LADD's passes other than one update of the heads, then one of the student.

Further updates of the heads add forward passes. With several micro-batches the updated heads are
known only after all of them: either the student's loss sees the updated heads in a second pass, or
it sees the heads from before the step.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ladd_jax.models.base import Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.base import Metrics, TrainState
from ladd_jax.objectives.passes import Drawn, Heads, Passes, Verdict

if TYPE_CHECKING:
    from ladd_jax.objectives.ladd import LADD

Frozen = dict[str, Any]


def update_heads(
    ladd: "LADD",
    heads: Heads,
    state: TrainState,
    frozen: Frozen,
    drawn: Drawn,
    x0_hat: jax.Array,
    keys: jax.Array,
) -> Heads:
    """Heads after one update for each key, each on fresh re-noising, by forward passes alone.

    Args:
      ladd: the objective.
      heads: heads before these updates.
      state: state before the step.
      frozen: the step's constant trees.
      drawn: the batch.
      x0_hat: the student's predictions.
      keys: raw PRNG keys `[n, 2]`; n may be 0.
    """
    if not len(keys):
        return heads

    def update(heads: Heads, key: jax.Array) -> tuple[Heads, None]:
        again = ladd.renoised(drawn, key)
        verdict = _judge(ladd, heads.params, state.step, frozen, again, x0_hat)
        return ladd.apply(heads, verdict.gradient), None

    return jax.lax.scan(update, heads, keys)[0]


def passes_if_due(
    interval: int,
    is_due: jax.Array,
    passes: Callable[[], Passes],
    of_heads: Callable[[], tuple[jax.Array, Heads, Verdict]],
) -> Passes:
    """The passes of a step; where the student is not due, the passes of the heads alone.

    Then the student's gradient is zero, and its losses are NaN.

    Args:
      interval: steps between updates of the student.
      is_due: whether the student is updated, bool [].
      passes: function that makes the passes for student and heads.
      of_heads: function that makes those for the heads alone.
    """
    if interval == 1:
        return passes()

    def alone() -> Passes:
        x0_hat, heads, verdict = of_heads()
        of_both = jax.eval_shape(passes)
        gradient = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), of_both.student_gradient
        )
        losses = {
            name: jnp.full(leaf.shape, jnp.nan, leaf.dtype) for name, leaf in of_both.losses.items()
        }
        return Passes(gradient, losses, x0_hat, heads, verdict)

    return jax.lax.cond(is_due, passes, alone)


def in_micro_batches(
    ladd: "LADD", state: TrainState, frozen: Frozen, drawn: Drawn, head_keys: jax.Array
) -> Passes:
    """The passes of a step in `ladd.accumulation` micro-batches, one after another."""
    if ladd.accumulated_heads == "updated":
        return _in_two_passes(ladd, state, frozen, drawn, head_keys)
    return _through_heads_before(ladd, state, frozen, drawn, head_keys)


def _in_two_passes(
    ladd: "LADD", state: TrainState, frozen: Frozen, drawn: Drawn, head_keys: jax.Array
) -> Passes:
    """All micro-batches for the heads, then again for the student: the same update."""
    x0_hat, heads, verdict = of_heads(ladd, state, frozen, drawn, head_keys)

    def generate(drawn: Drawn) -> tuple[Params, Metrics, Any]:
        x0_hat, student_vjp = jax.vjp(
            lambda params: ladd.predict(params, frozen, drawn), state.params
        )
        fake, real = ladd.open(frozen, drawn, x0_hat)
        x0_bar, losses = ladd.student_loss(heads.params, state.step, drawn, x0_hat, fake, real)
        return student_vjp(x0_bar)[0], losses, ()

    gradient, losses, _ = accumulate(generate, drawn, ladd.accumulation, ladd.student)
    return Passes(gradient, losses, x0_hat, heads, verdict)


def of_heads(
    ladd: "LADD", state: TrainState, frozen: Frozen, drawn: Drawn, head_keys: jax.Array
) -> tuple[jax.Array, Heads, Verdict]:
    """Predictions, the heads after all their updates, and their verdict; forward passes alone."""

    def predict(drawn: Drawn) -> tuple[Any, Any, jax.Array]:
        return (), (), ladd.predict(state.params, frozen, drawn)

    _, _, x0_hat = accumulate(predict, drawn, ladd.accumulation, ())
    heads = Heads(state.heads, state.heads_optimizer)
    heads = update_heads(ladd, heads, state, frozen, drawn, x0_hat, head_keys)
    verdict = _judge(ladd, heads.params, state.step, frozen, drawn, x0_hat)
    return x0_hat, ladd.apply(heads, verdict.gradient), verdict


def _through_heads_before(
    ladd: "LADD", state: TrainState, frozen: Frozen, drawn: Drawn, head_keys: jax.Array
) -> Passes:
    """All micro-batches for heads and student at once: the student sees the heads from before.

    The update of the heads that shares the student's fake pass comes first, the others follow.
    """

    def part(drawn: Drawn) -> tuple[Any, Any, Any]:
        x0_hat, student_vjp = jax.vjp(
            lambda params: ladd.predict(params, frozen, drawn), state.params
        )
        fake, real = ladd.open(frozen, drawn, x0_hat)
        verdict = ladd.judge(state.heads, state.step, frozen, drawn, x0_hat, fake, real)
        x0_bar, losses = ladd.student_loss(state.heads, state.step, drawn, x0_hat, fake, real)
        (gradient,) = student_vjp(x0_bar)
        return (
            (gradient, verdict.gradient), (losses, verdict.statistics), (x0_hat, verdict.accuracy)
        )  # fmt: skip

    (gradient, heads_gradient), (losses, statistics), (x0_hat, accuracy) = accumulate(
        part, drawn, ladd.accumulation, (ladd.student, ladd.critic.heads)
    )
    heads = ladd.apply(Heads(state.heads, state.heads_optimizer), heads_gradient)
    heads = update_heads(ladd, heads, state, frozen, drawn, x0_hat, head_keys)
    verdict = Verdict(heads_gradient, statistics, accuracy)
    return Passes(gradient, losses, x0_hat, heads, verdict)


def _judge(
    ladd: "LADD",
    heads: Params,
    step: jax.Array,
    frozen: Frozen,
    drawn: Drawn,
    x0_hat: jax.Array,
) -> Verdict:
    """`LADD.judge` on all micro-batches, by forward passes alone."""

    def part(item: tuple[Drawn, jax.Array]) -> tuple[Any, Any, Any]:
        return ladd.judge(heads, step, frozen, *item)

    return Verdict(*accumulate(part, (drawn, x0_hat), ladd.accumulation, ladd.critic.heads))

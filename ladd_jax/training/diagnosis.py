"""What is wrong with a step that was skipped, in words.

B batch, K heads.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.objectives.base import Batch, TrainState
from ladd_jax.objectives.discriminator_metrics import BANDS
from ladd_jax.parallel.mesh import replicated


@runtime_checkable
class Diagnosed(Protocol):
    """An objective that can tell what is not finite in a step, such as `LADD`."""

    def diagnose(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> dict[str, jax.Array]:
        """See `LADD.diagnose`."""
        ...


def diagnosis(
    objective: Diagnosed, state: TrainState, frozen: dict[str, Any], batch: Batch, mesh: Mesh
) -> tuple[str, Sequence[int]]:
    """Looks again at the last step, which was skipped.

    Args:
      objective: what was trained.
      state: state after the step, which differs from the one before only in its step count.
      frozen: trees that the objective reads.
      batch: the step's global batch.
      mesh: its devices.

    Returns:
      What is not finite, in words, and the places of those samples in the batch.
    """
    before = dataclasses.replace(state, step=state.step - 1)
    with jax.set_mesh(mesh):
        program = jax.jit(objective.diagnose, out_shardings=replicated(mesh))
        found = {name: np.asarray(value) for name, value in program(before, frozen, batch).items()}
    return in_words(**found)


def in_words(
    data: np.ndarray, student: np.ndarray, heads: np.ndarray, t_hat: np.ndarray
) -> tuple[str, Sequence[int]]:
    """What `diagnosis` returns, made from what `LADD.diagnose` returns."""
    parts = [
        f"{what} of {int(values.sum())} of {len(values)} samples"
        for what, values in (("the data", data), ("the student's prediction", student))
        if values.any()
    ]
    where = heads.any(axis=0)
    if where.any():
        names = ", ".join(f"{head:02d}" for head in np.flatnonzero(heads.any(axis=1)))
        bands = ", ".join(
            f"{low:.2f} to {high:.2f}"
            for low, high in zip(BANDS[:-1], BANDS[1:], strict=True)
            if (where & (t_hat >= low) & (t_hat < high)).any()
        )
        parts.append(f"the logits of heads {names}, at t_hat of {bands}")
    samples = np.flatnonzero(data.astype(bool) | student.astype(bool) | where).tolist()
    if not parts:
        return "the forward passes are finite, and the gradient is not", samples
    return f"not finite are {'; '.join(parts)}", samples

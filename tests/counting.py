"""The least training: one number, which compiles in no time."""

import jax
import jax.numpy as jnp
from runs import FLOPS, SHAPES, batches

from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import make_mesh, replicated
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.loop import Logging, Training, train
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.profile import Profile


class Counting:
    """The least objective: one number, which compiles in no time."""

    forward_units = (3, 0)

    def step(self, state, frozen, batch):
        weight = state.params["w"] + frozen["rate"] * jnp.mean(batch["latents"])
        metrics = {"loss": weight, **self.more(state)}
        return TrainState(
            state.step + 1, state.key, {"w": weight}, {"w": weight}, {}, (), ()
        ), metrics

    def more(self, state):
        return {}


def go(
    directory, objective=None, frozen=None, data=None, steps=6, saving=None, mesh=None, **changes
):
    """Six steps of training, recorded at the third and at the last."""
    mesh = mesh or make_mesh({"data": 1}, jax.devices()[:1])
    zero = jnp.zeros(())
    state = TrainState(
        jnp.zeros((), jnp.int32), jax.random.PRNGKey(0), {"w": zero}, {"w": jnp.copy(zero)}, {},
        (), (),
    )  # fmt: skip
    shardings = jax.tree.map(lambda _: replicated(mesh), state)
    state = jax.device_put(state, shardings)
    frozen = frozen or jax.device_put({"rate": jnp.asarray(0.1)}, replicated(mesh))
    checkpoints = Checkpoints(directory / "checkpoints", **(saving or dict(every=100)))
    fields = dict(
        writer=MetricWriter(directory), every=3, model_flops=FLOPS,
        profile=Profile(range(0), directory),
    ) | changes  # fmt: skip
    training = Training("test", objective or Counting(), shardings, frozen, mesh, steps, config={})
    state = train(
        training, state, data or batches(0, steps), SHAPES, checkpoints, Logging(**fields)
    )
    checkpoints.close()
    fields["writer"].close()
    return state

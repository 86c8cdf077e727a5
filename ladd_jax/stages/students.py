"""Loads the students that `distil` has made, and the one that a run begins with."""

from functools import partial
from logging import getLogger
from pathlib import Path

import jax
from jax.sharding import Mesh

from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config
from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Params
from ladd_jax.models.families import family_of
from ladd_jax.models.lora import Adapted
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import parameter_shardings
from ladd_jax.stages.checkpoints import checkpoint_difference, checkpoints_of, finished_checkpoints
from ladd_jax.stages.load import (
    first_inputs,
    load_base,
    open_loras,
    preference_loras,
    weights_inputs,
)
from ladd_jax.stages.names import STUDENTS
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like

_LOG = getLogger(__name__)


def load_student(config: Config, workdir: Path, mesh: Mesh) -> TrainState:
    """The last state of `distil`, on a mesh.

    Raises:
      NotFoundError: `distil` is not done.
    """
    abstract = abstract_like(*state_layout(objectives.distillation(config), mesh))
    saved = finished_checkpoints(config, workdir, "distil", config.distil.steps)
    state = saved.restore(abstract, config.distil.steps)
    saved.close()
    return state


def load_student_weights(
    config: Config, workdir: Path, mesh: Mesh, student: str, step: int
) -> Params:
    """One of the students of `distil`, finished or not, as the parameters of a whole network.

    Its adapters are added, and the LoRA of `prefer` if that is applied after the distillation.

    Args:
      config: the run's config.
      workdir: the run's workdir.
      mesh: mesh that the parameters are put on.
      student: one of `STUDENTS`.
      step: step of the checkpoint, from `student_step` or `finished_student_step`.

    Raises:
      NotFoundError: there is no such checkpoint.
      UserError: it does not fit the config.
    """
    network, architecture = objectives.student(config), architectures.student_architecture(config)
    loras = preference_loras(config, workdir) if config.prefer.after else ()
    added = open_loras(family_of(config), architecture, loras)
    params = load_trained(config, workdir, mesh, network, student, step)
    if not isinstance(network, Adapted):
        return added(params)
    layout = parameter_shardings(mesh, network.base.shapes, network.base.axes)
    merge = partial(network.merge, dtype=architecture.param_dtype)
    whole = jax.jit(merge, out_shardings=layout)(params, load_base(config, workdir, mesh))
    return added(whole)


def load_trained(
    config: Config, workdir: Path, mesh: Mesh, network: Backbone, student: str, step: int
) -> Params:
    """The trained part of a student of `distil`: its adapters, or the whole network without any.

    Takes the arguments of `load_student_weights` and the network of `objectives.student`, and
    raises the same errors. Adapters for weights that have changed since are refused.
    """
    layout = parameter_shardings(mesh, network.shapes, network.axes)
    saved = checkpoints_of(config, workdir, "distil")
    base = weights_inputs(config) | first_inputs(config, workdir, start=True)
    if network.constants and base:
        # Only adapters depend on the weights that the student began with being unchanged.
        found = checkpoint_difference(
            config, saved.directory, "distil", step, saved.config(step), base
        )
        if found:
            saved.close()
            raise UserError(found)
    params = saved.restore_tree(STUDENTS[student], abstract_like(network.shapes, layout), step)
    saved.close()
    return params


def load_origin(origin: Path, step: int | None, abstract: TrainState) -> TrainState:
    """The state of the student that a run begins with, including heads and optimizers.

    Args:
      origin: workdir of the run that trained it.
      step: step of its checkpoint; default: the newest.
      abstract: shapes, dtypes and shardings of the state.

    Raises:
      NotFoundError: its checkpoint is gone.
      UserError: its checkpoint is damaged, or has another structure.
    """
    saved = Checkpoints(origin / "distil" / "checkpoints")
    state = saved.restore(abstract, step)
    saved.close()
    _LOG.info("distil: starting with the student of %s at step %d", origin, int(state.step))
    return state

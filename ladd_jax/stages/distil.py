"""The stage `distil`: trains the student by LADD, or by another method, on a run's shards."""

from functools import partial
from pathlib import Path

import jax

from ladd_jax.config import objectives
from ladd_jax.config.architectures import start_tree
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.workdir import folder, places
from ladd_jax.data.shard_sets import read_identity
from ladd_jax.errors import UserError
from ladd_jax.models.lora import BASE
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.going_back import go_back, lowered
from ladd_jax.stages.load import load_frozen, load_start
from ladd_jax.stages.previews import Previews
from ladd_jax.stages.sets import student_data
from ladd_jax.stages.students import load_origin
from ladd_jax.stages.synthesize import noise_keys
from ladd_jax.stages.train import run_training
from ladd_jax.training.collapse import CollapsedError
from ladd_jax.training.diagnosis import Diagnosed
from ladd_jax.training.loop import Training
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like, create


def distil(config: Config, workdir: Path) -> None:
    """Trains the student on the run's shards, from where it stopped if it was stopped.

    Raises:
      CollapsedError: the student collapsed, and the config does not let it go back (again).
    """
    while collapse := _distil(config, workdir):
        go_back(config, folder(workdir, "distil"), collapse)


def _distil(config: Config, workdir: Path) -> CollapsedError | None:
    """Trains to the end, or returns a collapse after which the stage has to go back."""
    stage = config.distil
    mesh = make_mesh(config.mesh.sizes)
    objective = objectives.distillation(lowered(config, folder(workdir, "distil")))
    shards = student_data(config, workdir)
    if objective.reads_noise_keys and not read_identity(shards.directory):
        raise UserError(
            f"{shards.directory} does not say which seed its samples were made with, and "
            f"distil.paired_weight is {stage.paired_weight}: use 0, or make them again"
        )

    seed = config.seed + stage.seed
    key = jax.random.fold_in(jax.random.PRNGKey(seed), 1)
    shapes, shardings = state_layout(objective, mesh)
    frozen = load_frozen(config, workdir, mesh, objective.networks, shards)
    student = objective.student
    begun = places(workdir)

    def fresh() -> TrainState:
        if begun.origin is not None:
            return load_origin(begun.origin, begun.step, abstract_like(shapes, shardings))
        # Reuses a network in `frozen` if one fits. A network loaded here instead is released as
        # soon as the state is made.
        if student.constants:
            (start,) = (frozen[name] for name in student.constants)
        elif start_tree(config) != BASE and start_tree(config) in frozen:
            start = frozen[start_tree(config)]
        else:
            start = load_start(config, workdir, mesh)
        return create(objective.init, shardings, key, start)

    preview = None
    if config.log.samples_every and config.evaluate.student_steps:
        previews = Previews(config, workdir, shards, student, mesh)

        def preview(state: TrainState, step: int, writer: MetricWriter) -> dict[str, float]:
            ema = jax.device_put(state.ema, shardings.params)
            return previews(student.complete(ema, frozen), step, writer)

    training = Training(
        name="distil",
        objective=objective,
        shardings=shardings,
        frozen=frozen,
        mesh=mesh,
        steps=stage.steps,
        config=to_dict(config),
        diagnosed=objective if isinstance(objective, Diagnosed) else None,
    )
    try:
        run_training(
            training,
            config,
            workdir,
            shards,
            stage.batch_size,
            seed=seed,
            shapes=shapes,
            fresh=fresh,
            preview=preview,
            noise_keys=partial(noise_keys, config) if objective.reads_noise_keys else None,
        )
    except CollapsedError as error:
        if config.watch.collapse != "back":
            raise
        # The traceback's frames keep the state alive, which must be freed before it is read again.
        return error.with_traceback(None)
    return None

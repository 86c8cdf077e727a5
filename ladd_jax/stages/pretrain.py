"""The stage `pretrain`: trains the data generator by flow matching on real data."""

from pathlib import Path

import jax

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import lay, make_mesh, replicated
from ladd_jax.stages.load import shards_of
from ladd_jax.stages.train import run_training
from ladd_jax.training.loop import Training
from ladd_jax.training.state import create, state_shardings


def pretrain(config: Config, workdir: Path) -> None:
    """Trains the data generator on the real shards; goes on where it stopped."""
    stage = config.pretrain
    mesh = make_mesh(config.mesh.sizes)
    objective = objectives.flow_matching(config)
    shards = shards_of(config, workdir, "encoded")
    optimizer = objective.optimizer.build()

    def init(key: jax.Array) -> TrainState:
        params_key, state_key = jax.random.split(key)
        return objective.init(state_key, objective.model.init(params_key))

    key = jax.random.PRNGKey(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(shapes, mesh, axes=objective.model.axes, optimizer=optimizer)
    null = {name: lay(array, replicated(mesh)) for name, array in shards.null.items()}
    training = Training(
        name="pretrain",
        objective=objective,
        shardings=shardings,
        frozen={"null": null},
        mesh=mesh,
        steps=stage.steps,
        config=to_dict(config),
    )
    run_training(
        training,
        config,
        workdir,
        shards,
        stage.batch_size,
        seed=config.seed,
        shapes=shapes,
        fresh=lambda: create(init, shardings, key),
    )

"""The stages `pretrain` and `finetune`: flow matching of the data generator, then of the student.

`pretrain` makes the data generator from real data. `finetune` goes on from it on what the student
is to learn, its guided samples, and makes what `distil` starts from.
"""

from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.workdir import places
from ladd_jax.data.shards import Shards
from ladd_jax.models.base import Params
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import lay, make_mesh, replicated
from ladd_jax.stages.load import load_generator, shards_of, student_data
from ladd_jax.stages.train import run_training
from ladd_jax.training.loop import Training
from ladd_jax.training.state import create, state_shardings


def pretrain(config: Config, workdir: Path) -> None:
    """Trains the data generator on the real shards; goes on where it stopped."""
    _match("pretrain", config, workdir, shards_of(config, workdir, "encoded"))


def finetune(config: Config, workdir: Path) -> None:
    """Trains the student, from the data generator, on the shards of `distil`; goes on, too.

    Does nothing with `finetune.steps` 0, and where `distil` begins with the student of another run.
    """
    if config.finetune.steps and places(workdir).origin is None:
        shards = student_data(config, workdir)

        def start(mesh: Mesh) -> Params:
            return load_generator(config, workdir, mesh)

        _match("finetune", config, workdir, shards, start)


def _match(
    name: str,
    config: Config,
    workdir: Path,
    shards: Shards,
    start: Callable[[Mesh], Params] | None = None,
) -> None:
    """Trains from what `start` loads, or from random parameters."""
    stage = getattr(config, name)
    mesh = make_mesh(config.mesh.sizes)
    objective = objectives.flow_matching(config, stage)
    optimizer = objective.optimizer.build()

    def init(key: jax.Array, params: Params | None = None) -> TrainState:
        params_key, state_key = jax.random.split(key)
        model = objective.model
        return objective.init(
            state_key, model.init(params_key) if params is None else model.begin(params_key, params)
        )

    key = jax.random.PRNGKey(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = state_shardings(shapes, mesh, axes=objective.model.axes, optimizer=optimizer)

    def fresh() -> TrainState:
        given = () if start is None else (start(mesh),)
        return create(init, shardings, key, *given)

    null = {name: lay(array, replicated(mesh)) for name, array in shards.null.items()}
    training = Training(
        name=name,
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
        fresh=fresh,
    )

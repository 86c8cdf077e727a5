"""The stages `pretrain` and `finetune`: flow matching of the data generator, then of the student.

`pretrain` trains the data generator on real data. It begins with the given weights, if there are
any, when the data join channels that these do not have. It also trains, each from scratch, a
teacher and the network that the student starts from, if these have other sizes. `finetune` trains
the network that the student starts from on the shards of `distil`, usually guided samples, and
makes the network that `distil` begins with.
"""

from functools import partial
from pathlib import Path

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config
from ladd_jax.config.pretraining import further_trainings
from ladd_jax.config.workdir import places
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.load import load_unfinetuned, load_widened
from ladd_jax.stages.sets import shards_of, student_data
from ladd_jax.stages.train import train_network


def pretrain(config: Config, workdir: Path) -> None:
    """Trains the data generator on the real shards, then the networks of other sizes, resumably.

    A run that began from another run's student takes the networks of other sizes from there.
    """
    shards = shards_of(config, workdir, "encoded")
    objective = objectives.flow_matching(config, config.pretrain)
    start = None
    if config.weights:
        mesh = make_mesh(config.mesh.sizes)
        start = partial(load_widened, config, mesh)
    train_network("pretrain", config, workdir, shards, objective, start=start)
    for name in further_trainings(config) if places(workdir).origin is None else ():
        objective = objectives.flow_matching(config, config.pretrain, name)
        train_network(name, config, workdir, shards, objective)


def finetune(config: Config, workdir: Path) -> None:
    """Trains the network that the student starts from on the shards of `distil`, resumably.

    Does nothing if `finetune.steps` is 0, or if `distil` begins with the student of another run.
    """
    if config.finetune.steps and places(workdir).origin is None:
        mesh = make_mesh(config.mesh.sizes)
        train_network(
            "finetune",
            config,
            workdir,
            student_data(config, workdir),
            objectives.flow_matching(config, config.finetune),
            start=lambda: load_unfinetuned(config, workdir, mesh),
        )

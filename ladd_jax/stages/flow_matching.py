"""The stages `pretrain` and `finetune`: flow matching of the data generator, then of the student.

`pretrain` makes the data generator from real data, beginning with the weights where there are any
that lack channels which the data join; and beside it, each from nothing, a teacher and what the
student starts from, where these are of other sizes. `finetune` goes on from what the student starts
from, on what it is to learn, the guided samples, and makes what `distil` starts from.
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
    """Trains the data generator on the real shards, and then the networks of other sizes; goes on
    where it stopped.

    A run that began from another one's student has the latter from there.
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
    """Trains the student, from what it starts from, on the shards of `distil`; goes on, too.

    Does nothing with `finetune.steps` 0, and where `distil` begins with the student of another run.
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

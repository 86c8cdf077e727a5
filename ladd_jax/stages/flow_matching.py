"""The stages `pretrain` and `finetune`: flow matching of the data generator, then of the student.

`pretrain` makes the data generator from real data, beginning with the weights where there are any
that lack channels which the data join. `finetune` goes on from it on what the student
is to learn, its guided samples, and makes what `distil` starts from.
"""

from functools import partial
from pathlib import Path

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config
from ladd_jax.config.workdir import places
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.load import load_generator, load_widened
from ladd_jax.stages.sets import shards_of, student_data
from ladd_jax.stages.train import train_network


def pretrain(config: Config, workdir: Path) -> None:
    """Trains the data generator on the real shards; goes on where it stopped."""
    shards = shards_of(config, workdir, "encoded")
    objective = objectives.flow_matching(config, config.pretrain)
    start = None
    if config.weights:
        mesh = make_mesh(config.mesh.sizes)
        start = partial(load_widened, config, mesh)
    train_network("pretrain", config, workdir, shards, objective, start=start)


def finetune(config: Config, workdir: Path) -> None:
    """Trains the student, from the data generator, on the shards of `distil`; goes on, too.

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
            start=lambda: load_generator(config, workdir, mesh),
        )

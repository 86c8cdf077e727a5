"""The stage `prefer`: learns people's preferences as a LoRA of the data generator.

The paper adds the LoRA before distillation, and once more to the student afterwards.
`prefer.applied` chooses between both. Other runs can use the file as one of their `loras`.
"""

from logging import getLogger
from pathlib import Path
from typing import Any

import jax

from ladd_jax.config import objectives
from ladd_jax.config.architectures import generator_architecture
from ladd_jax.config.fields import Config
from ladd_jax.errors import UserError
from ladd_jax.models.base import OTHER, PREFERENCE
from ladd_jax.models.families import family_of
from ladd_jax.models.lora import BASE
from ladd_jax.parallel.mesh import make_mesh, replicated
from ladd_jax.parallel.processes import as_process_0, barrier
from ladd_jax.stages.load import load_adapters, load_generator_before, preference_file
from ladd_jax.stages.sets import shards_of
from ladd_jax.stages.train import train_network

_LOG = getLogger(__name__)


def prefer(config: Config, workdir: Path) -> None:
    """Trains the LoRA on the pairs in the real shards, resumably, and writes it to a file.

    Does nothing if `prefer.steps` is 0.

    Raises:
      UserError: the shards have no pairs.
    """
    if not config.prefer.steps:
        return
    shards = shards_of(config, workdir, "encoded", pairs=True)
    if not {OTHER, PREFERENCE} <= shards.cond_arrays.keys():
        raise UserError(
            f"{shards.directory} has no pairs of pictures and prefer.steps is "
            f"{config.prefer.steps}: name their columns by data.other_column and "
            f"data.preference_column, and encode them, or use 0"
        )
    mesh = make_mesh(config.mesh.sizes)
    objective, file = objectives.preference(config), preference_file(workdir)

    def constant() -> dict[str, Any]:
        if jax.process_index() == 0:
            # The file has fewer steps than the training will have.
            file.unlink(missing_ok=True)
        return {BASE: load_generator_before(config, workdir, mesh)}

    train_network("prefer", config, workdir, shards, objective, constant)
    if as_process_0(file.is_file()):
        return
    adapters = load_adapters(config, workdir, objective.model, replicated(mesh))
    adapters = jax.device_get(adapters)
    if jax.process_index() == 0:
        family_of(config).save_lora(file, generator_architecture(config), objective.model, adapters)
        _LOG.info("prefer: the LoRA is %s", file)
    barrier("preference's LoRA")

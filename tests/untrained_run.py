"""Workdirs with networks that nobody trained, for what reads the result of a run."""

import dataclasses

import jax
import jax.numpy as jnp
from pipelines import save_pipeline
from tiny import random_params

from ladd_jax.config import objectives
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.workdir import settle
from ladd_jax.stages.export import export
from ladd_jax.training.checkpoint import Checkpoints


def save_student(config, workdir, step=2, inputs=None):
    """Writes a run's config and a checkpoint of `distil`, with another student than its average.

    Args:
      config: the config.
      workdir: the workdir.
      step: the checkpoint's step.
      inputs: digests of what it was made of, by name.

    Returns:
      its state.
    """
    settle(workdir, to_dict(config))
    objective = objectives.ladd(config)
    params = random_params(objective.student, seed=1)
    state = jax.jit(objective.init)(jax.random.PRNGKey(0), params)
    ema = random_params(objective.student, seed=2)
    state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32), ema=ema)
    saved = Checkpoints(workdir / "distil" / "checkpoints")
    saved.save(step, state, to_dict(config) | ({"inputs": inputs} if inputs else {}))
    saved.close()
    return state


def save_generator(config, workdir):
    """Writes a checkpoint of `pretrain` after its last step, of random parameters."""
    objective = objectives.flow_matching(config, config.pretrain)
    params = random_params(objective.model, seed=3)
    state = jax.jit(objective.init)(jax.random.PRNGKey(0), params)
    state = dataclasses.replace(state, step=jnp.asarray(config.pretrain.steps, jnp.int32))
    saved = Checkpoints(workdir / "pretrain" / "checkpoints")
    saved.save(config.pretrain.steps, state, to_dict(config))
    saved.close()


def export_sd3(get_config, directory, text_length):
    """An export of an untrained student of SD3's small pipeline, with the channels of SD3.

    Args:
      get_config: of a config of SD3.
      directory: a folder to fill.
      text_length: tokens of T5.

    Returns:
      folder of the export, workdir.
    """
    save_pipeline(directory / "pipeline", qk_norm=True)
    config = get_config(f"size=tiny,weights={directory / 'pipeline'},resolution=128")
    read_architectures(config)
    config.data.update(dict(buckets=("8x8",), text_length=77 + text_length))
    config.model.update(dict(dtype="float32", remat="none"))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    save_student(typed(config), directory / "run")
    export(directory / "run", directory / "exported", dtype="float32")
    return directory / "exported", directory / "run"

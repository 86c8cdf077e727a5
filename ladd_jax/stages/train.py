"""What the training stages share: everything from a workdir to a finished training."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.pretraining import settings_of
from ladd_jax.config.record_shapes import record_shapes
from ladd_jax.config.workdir import folder
from ladd_jax.data.pipeline import BatchPlan, NoiseKeys, loader, noise_keys_shape
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.shards import Shards
from ladd_jax.errors import UserError
from ladd_jax.models.base import GUIDANCE, Params
from ladd_jax.objectives.base import TrainState
from ladd_jax.objectives.dpo import DPO
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.parallel.mesh import batch_rows, lay, make_mesh, replicated
from ladd_jax.stages.changes import begin_training, inputs_in
from ladd_jax.stages.checkpoints import checkpoints_of
from ladd_jax.training.collapse import CollapsedError, CollapseWatch
from ladd_jax.training.loop import Logging, Training, train
from ladd_jax.training.metrics import DivergedError, MetricWriter, read_history
from ladd_jax.training.profile import Profile
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like, create

_LOG = getLogger(__name__)

_SHOWN = 8
"""How many records an error names by their keys."""


def run_training(
    training: Training,
    config: Config,
    workdir: Path,
    shards: Shards,
    batch_size: int,
    *,
    seed: int,
    shapes: TrainState,
    fresh: Callable[[], TrainState],
    preview: Callable[[TrainState, int, MetricWriter], dict[str, float]] | None = None,
    noise_keys: NoiseKeys | None = None,
    constant: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Trains from the newest intact checkpoint, or from the start; does nothing if it is done.

    Args:
      training: the training; checkpoints and metrics go to the folder of its name.
      config: the run's config.
      workdir: the run's workdir.
      shards: the data.
      batch_size: global batch size.
      seed: seed of the order of batches.
      shapes: shapes of the state.
      fresh: makes the state before the first step.
      preview: shows samples of a state at a step, and returns metrics of them.
      noise_keys: gives the noise keys of records, if the objective needs them.
      constant: loads further constant trees; not called if the training is done.
    """
    name, mesh = training.name, training.mesh
    directory = folder(workdir, name)
    inputs = inputs_in(config, workdir, name)
    begin_training(config, workdir, name, inputs)
    saved = checkpoints_of(config, workdir, name)
    start = saved.latest()
    if start is not None and start >= training.steps:
        _LOG.info("%s: done at step %d", name, start)
        saved.close()
        return
    _check_cond(config, name, shards)
    if constant is not None:
        training = dataclasses.replace(training, frozen=training.frozen | constant())
    plan = BatchPlan(shards.sizes, batch_size, seed)
    if start is None:
        state = fresh()
        if jax.process_index() == 0:
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            _LOG.info("%s: parameters\n%s", name, overview)
    else:
        state = saved.restore_newest(abstract_like(shapes, training.shardings))
        _LOG.info("%s: resuming at step %d", name, int(state.step))
    traced = config.log.traced
    if traced and traced[-1] <= int(state.step):
        _LOG.warning("%s: no trace of steps %s, since they are done", name, config.log.profile)
    rows = batch_rows(mesh, batch_size)
    batches = loader(
        shards, plan, int(state.step), training.steps, rows=rows, noise_keys=noise_keys
    )
    batch_shapes = shards.batch_shapes(batch_size)
    if noise_keys is not None:
        batch_shapes = {
            bucket: batch | {"noise_keys": noise_keys_shape(batch_size)}
            for bucket, batch in batch_shapes.items()
        }
    writer = MetricWriter(directory, config.log.writers, training.config, config.watch.max_skips)
    logging = Logging(
        writer=writer,
        every=config.log.every,
        model_flops={
            bucket: objectives.model_flops(config, training.objective, bucket, batch["cond"], name)
            for bucket, batch in batch_shapes.items()
        },
        profile=Profile(traced, directory),
        sample=None if preview is None else lambda state, step: preview(state, step, writer),
        sample_every=config.log.samples_every,
        watch=_collapse_watch(config, directory, int(state.step)) if name == "distil" else None,
    )
    with contextlib.closing(writer):
        try:
            told = dataclasses.replace(training, config=training.config | {"inputs": inputs})
            train(told, state, batches, batch_shapes, saved, logging)
        except CollapsedError:
            # Closed here because `go_back` opens the checkpoints again. All processes raise this.
            saved.close()
            raise
        except DivergedError as error:
            if not error.steps:
                raise
            raise DivergedError(f"{error}; {_records(plan, error)}") from error
    saved.close()


def train_network(
    name: str,
    config: Config,
    workdir: Path,
    shards: Shards,
    objective: FlowMatching | DPO,
    constant: Callable[[], dict[str, Any]] | None = None,
    start: Callable[[], Params] | None = None,
) -> None:
    """Trains the network of an objective that has only one, by `run_training`.

    Args:
      name: name of the training.
      config: the run's config.
      workdir: the run's workdir.
      shards: the data.
      objective: the objective that it is trained with.
      constant: loads the constant trees besides `null`, the cond of the empty prompt.
      start: loads the parameters of a whole network to begin with; default: random ones.
    """
    stage, model = settings_of(config, name), objective.model
    mesh = make_mesh(config.mesh.sizes)

    def init(key: jax.Array, params: Params | None = None) -> TrainState:
        params_key, state_key = jax.random.split(key)
        begun = model.init(params_key) if params is None else model.begin(params_key, params)
        return objective.init(state_key, begun)

    key = jax.random.PRNGKey(config.seed)
    shapes, shardings = state_layout(objective, mesh)

    def fresh() -> TrainState:
        return create(init, shardings, key, *(() if start is None else (start(),)))

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
        constant=constant,
    )


def _collapse_watch(
    config: Config, directory: Path, start: int
) -> Callable[[Mapping[str, Any]], None] | None:
    watch = config.watch
    if watch.collapse == "off":
        return None
    return CollapseWatch(
        # Records after the checkpoint belong to steps that will be done again.
        [record for record in read_history(directory) if record["step"] <= start],
        records=watch.records,
        accuracy=watch.accuracy,
        lowest=watch.lowest,
        highest=watch.highest,
        stop=watch.collapse in ("stop", "back"),
    ).see


def _records(plan: BatchPlan, error: DivergedError) -> str:
    """The keys of the records that caused a step to be skipped, or of its whole batch."""
    # The error counts steps from 1, and the plan counts them from 0.
    bucket, indices = plan[error.steps[-1] - 1]
    if error.samples:
        indices = indices[list(error.samples)]
    keys = [f"{bucket.name}/{index}" for index in indices[:_SHOWN]]
    more = f" and {len(indices) - len(keys)} more" if len(indices) > len(keys) else ""
    return f"its records are {', '.join(keys)}{more}"


def _check_cond(config: Config, stage: str, shards: Shards) -> None:
    """Raises UserError if an array that the network is given is missing or misshaped in records."""
    for bucket in shards.buckets:
        wanted = record_shapes(config, stage, bucket)
        for name in wanted.keys() - shards.arrays.keys() - {LATENTS}:
            if name == GUIDANCE:
                raise UserError(
                    f"{shards.directory} does not say which guidance its samples were made with, "
                    f"and synthesize.guidance_range is {config.synthesize.guidance_range}: leave "
                    f"it out, or remove the samples and make them again"
                )
            raise UserError(
                f"{shards.directory} has no array {name!r}, which the network is given besides the "
                f"latents: encode data that have it, or use a network that does not read it"
            )
        for name, shape in wanted.items():
            found = shards.arrays[name].shape_in(bucket) if name in shards.arrays else shape
            if found != shape:
                raise UserError(
                    f"{shards.directory} has {name} of shape {found} in bucket {bucket.name} and "
                    f"the config asks for {shape}: put the shards of this run there, or remove "
                    f"them and run the stage that writes them again"
                )

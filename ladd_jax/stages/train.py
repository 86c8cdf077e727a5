"""What the two training stages share: from a workdir to a finished training."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.data.pipeline import BatchPlan, loader
from ladd_jax.data.shards import Shards
from ladd_jax.objectives.base import Objective, TrainState
from ladd_jax.parallel.mesh import batch_rows
from ladd_jax.stages.load import checkpoints_of
from ladd_jax.training.loop import train
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.profile import Profile
from ladd_jax.training.state import abstract_like

_LOG = logging.getLogger(__name__)


def run_training(
    name: str,
    config: Config,
    workdir: Path,
    objective: Objective,
    shapes: TrainState,
    shardings: TrainState,
    fresh: Callable[[], TrainState],
    frozen: Any,
    shards: Shards,
    mesh: Mesh,
    *,
    steps: int,
    batch_size: int,
    preview: Callable[[TrainState, int, MetricWriter], dict[str, float]] | None = None,
) -> None:
    saved = checkpoints_of(config, workdir, name)
    start = saved.latest()
    if start is not None and start >= steps:
        _LOG.info("%s: done at step %d", name, start)
        saved.close()
        return
    plan = BatchPlan(shards.sizes, batch_size, config.seed)
    if start is None:
        state = fresh()
        if jax.process_index() == 0:
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            _LOG.info("%s: parameters\n%s", name, overview)
    else:
        state = saved.restore(abstract_like(shapes, shardings))
        _LOG.info("%s: goes on at step %d", name, start)
    traced = config.log.traced
    if traced and traced[-1] <= int(state.step):
        _LOG.warning("%s: no trace of steps %s, they are done", name, config.log.profile)
    writer = MetricWriter(workdir / name)
    batches = loader(
        shards,
        plan,
        int(state.step),
        steps,
        rows=batch_rows(mesh, batch_size),
    )
    batch_shapes = shards.batch_shapes(batch_size)
    train(
        name,
        objective,
        state,
        shardings,
        frozen,
        batches,
        batch_shapes,
        steps=steps,
        mesh=mesh,
        checkpoints=saved,
        config=to_dict(config),
        writer=writer,
        log_every=config.log.every,
        profile=Profile(traced, workdir / name),
        model_flops={
            bucket: objectives.model_flops(config, objective, bucket, shapes["cond"])
            for bucket, shapes in batch_shapes.items()
        },
        sample=None if preview is None else lambda state, step: preview(state, step, writer),
        sample_every=config.log.samples_every,
    )
    writer.close()
    saved.close()

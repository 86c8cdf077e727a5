"""One process of a tiny training job: `tiny_job.py SHARDS DIRECTORY STEPS MESH`.

Goes on from the last checkpoint in DIRECTORY, trains to STEPS, and writes which records it read.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import tiny

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import BatchPlan, loader
from ladd_jax.data.shard_sets import Layout
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.parallel.mesh import batch_rows, make_mesh, replicated
from ladd_jax.parallel.processes import together
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.loop import Logging, Training, train
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.profile import Profile
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like, create

BUCKET = Bucket(4, 4)
RECORDS, BATCH = 32, 8


def write_shards(directory):
    """Four batches of random records."""
    null = {"context": np.zeros((tiny.T, tiny.CONTEXT)), "pooled": np.zeros(tiny.POOLED)}
    text = {name: ArraySpec(array.shape) for name, array in null.items()}
    layout = Layout({BUCKET: RECORDS}, 8, {"latents": ArraySpec(("H", "W", 2)), **text})
    for shard in missing_shards(directory, layout):
        batch = tiny.batch(shard.index, shard.bucket.height, shard.bucket.width)
        rows = (jax.tree.map(lambda array, i=i: np.asarray(array[i]), batch) for i in range(8))
        write_shard(directory, layout, shard, (row | {"prompt": "x"} for row in rows))
    finalize(directory, layout, null)


def setup(mesh):
    """(objective, frozen, shapes, shardings) on a mesh."""
    # A large epsilon keeps Adam's update near the gradient: with a small one it is the sign, and
    # that of a rounding error is anything.
    optimizer = Optimizer(0.1, epsilon=1.0)
    objective = tiny.ladd(
        tiny.mmdit_config(depth=1), optimizer=optimizer, heads_optimizer=optimizer, ema_decay=0.9
    )
    frozen = {"teacher": tiny.random_params(objective.critic.teacher, 5)}
    shapes, shardings = state_layout(objective, mesh)
    return objective, frozen, shapes, shardings


def run(shards, directory, steps, mesh):
    objective, frozen, shapes, shardings = setup(mesh)
    frozen = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(
        jax.tree.map(np.asarray, frozen)
    )
    checkpoints = Checkpoints(directory / "checkpoints", every=100, keep=5)
    start = checkpoints.latest() or 0
    if start:
        state = checkpoints.restore(abstract_like(shapes, shardings))
    else:
        state = create(objective.init, shardings, jax.random.PRNGKey(0), frozen["teacher"])
    shards = Shards(shards)
    plan, rows = BatchPlan(shards.sizes, BATCH, 0), batch_rows(mesh, BATCH)
    writer = MetricWriter(directory)
    training = Training("tiny", objective, shardings, frozen, mesh, steps, config={})
    logging = Logging(writer, 1, {BUCKET: 10**9}, Profile(range(0), directory))
    batches = loader(shards, plan, start, steps, rows=rows)
    train(training, state, batches, shards.batch_shapes(BATCH), checkpoints, logging)
    writer.close()
    checkpoints.close()
    read = [
        key
        for bucket, indices in (plan[step] for step in range(start, steps))
        for key in shards.read(bucket, indices[rows])["key"]
    ]
    (directory / f"read.{steps}.{jax.process_index()}").write_text(json.dumps(read))


if __name__ == "__main__":
    with together(60):
        sizes = json.loads(sys.argv[4])
        run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), make_mesh(sizes))

"""A small run of distillation that the tests of training share."""

import contextlib

import jax
import numpy as np
import tiny
from jax.experimental.compilation_cache import compilation_cache

from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.data.buckets import Bucket
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.loop import Logging, Training, train
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.profile import Profile
from ladd_jax.training.program import state_layout
from ladd_jax.training.state import abstract_like, create


@contextlib.contextmanager
def keeping_programs(directory):
    """Programs that are compiled meanwhile are kept in a directory, and compiled once."""
    names = ("dir", "min_compile_time_secs", "min_entry_size_bytes")
    flags = [
        f"jax_{'compilation' if name == 'dir' else 'persistent'}_cache_{name}" for name in names
    ]
    before = {flag: getattr(jax.config, flag) for flag in flags}
    compilation_cache.reset_cache()
    keep_programs("programs", directory)
    yield
    for flag, value in before.items():
        jax.config.update(flag, value)
    compilation_cache.reset_cache()


SQUARE, WIDE = Bucket(4, 4), Bucket(4, 8)
SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def batches(start, stop):
    """Batches as a function of the step, alternating buckets."""
    for step in range(start, stop):
        bucket = (SQUARE, WIDE)[step % 2]
        batch = tiny.batch(step, bucket.height, bucket.width)
        yield bucket, jax.tree.map(np.asarray, batch)


SHAPES = {bucket: jax.eval_shape(lambda batch=batch: batch) for bucket, batch in batches(0, 2)}
FLOPS = {SQUARE: 10**9, WIDE: 2 * 10**9}


class Run:
    """One objective, laid on one mesh."""

    def __init__(self, mesh=None, **changes):
        self.mesh = mesh or make_mesh({"data": 1}, jax.devices()[:1])
        # A large epsilon keeps Adam's update near the gradient: with a small one it is the sign,
        # and the student's gradient would go through heads moved by the sign of a rounding error.
        optimizer = Optimizer(0.1, epsilon=1.0)
        fields = dict(ema_decay=0.9, optimizer=optimizer, heads_optimizer=optimizer)
        self.objective = tiny.ladd(**(fields | changes))
        self.frozen = {"teacher": tiny.random_params(self.objective.critic.teacher, 5)}

        def init(key):
            return self.objective.init(key, self.frozen["teacher"])

        self.init = init
        self.shapes, self.shardings = state_layout(self.objective, self.mesh)

    def fresh(self):
        return create(self.init, self.shardings, jax.random.PRNGKey(0))

    def abstract(self):
        return abstract_like(self.shapes, self.shardings)

    def train(self, state, steps, directory, log_every=2, **changes):
        checkpoints = Checkpoints(directory / "checkpoints", every=2, keep=5)
        writer = MetricWriter(directory)
        objective = changes.pop("objective", self.objective)
        training = Training(
            "test", objective, self.shardings, self.frozen, self.mesh, steps, config={"a": 1}
        )
        logging = Logging(writer, log_every, FLOPS, Profile(range(0), directory), **changes)
        start = int(state.step)
        state = train(training, state, batches(start, steps), SHAPES, checkpoints, logging)
        checkpoints.close()
        writer.close()
        return state

"""The training loop: the same for every objective."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from logging import getLogger
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import put, widened
from ladd_jax.names import counted
from ladd_jax.objectives.base import Objective, TrainState
from ladd_jax.parallel.liveness import stepping
from ladd_jax.parallel.stopping import deferred
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.clock import StepClock
from ladd_jax.training.diagnosis import Diagnosed, diagnosis
from ladd_jax.training.metrics import DivergedError, MetricWriter
from ladd_jax.training.profile import Profile
from ladd_jax.training.program import batch_like, step_program
from ladd_jax.training.state import not_finite

_LOG = getLogger(__name__)

Batches = Iterator[tuple[Bucket, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Training:
    """What stays the same from the first step of a training to its last.

    Attributes:
      name: name on the progress bar.
      objective: the training target; its `step` is compiled for each bucket before the first
        step, and donates the state.
      shardings: shardings of the state.
      frozen: trees that the objective reads and never changes, by name.
      mesh: mesh of the state and the batches.
      steps: the step to end at.
      config: config that is saved with each checkpoint.
      diagnosed: the objective, where it can tell what is wrong with a step that was skipped.
    """

    name: str
    objective: Objective
    shardings: TrainState
    frozen: dict[str, Any]
    mesh: Mesh
    steps: int
    config: dict[str, Any]
    diagnosed: Diagnosed | None = None


@dataclasses.dataclass(frozen=True)
class Logging:
    """What is reported about a training while it goes on.

    Attributes:
      writer: writer of the metrics.
      every: steps between writes, which wait for the device; there is one at each sample and
        before each checkpoint too. Besides these, only the two edges of a trace wait for it.
      model_flops: model FLOPs of one image of each bucket in a step.
      profile: tracer of some of the steps.
      sample: function of the state and the step, called every `sample_every` steps; the metrics
        that it returns are written too.
      sample_every: steps between calls of `sample`; 0 for never.
      watch: sees each record, before a checkpoint; may stop the training by an error.
    """

    writer: MetricWriter
    every: int
    model_flops: Mapping[Bucket, int]
    profile: Profile
    sample: Callable[[TrainState, int], dict[str, float]] | None = None
    sample_every: int = 0
    watch: Callable[[Mapping[str, Any]], None] | None = None

    def sample_at(self, step: int) -> Callable[[TrainState, int], dict[str, float]] | None:
        """`sample` where it is called after this step, else None."""
        return self.sample if self.sample_every and step % self.sample_every == 0 else None


def train(
    training: Training,
    state: TrainState,
    batches: Batches,
    batch_shapes: Mapping[Bucket, Any],
    checkpoints: Checkpoints,
    logging: Logging,
) -> TrainState:
    """Trains from `state.step` to `training.steps`.

    Args:
      training: what is trained.
      state: state to start from; its buffers are consumed.
      batches: this host's batches from step `state.step` on.
      batch_shapes: the global batch of each bucket, as `jax.ShapeDtypeStruct`.
      checkpoints: place where the state is saved, at the end in any case.
      logging: what is reported meanwhile.

    Returns:
      The state of step `training.steps`, on disk when this returns.

    Raises:
      DivergedError: a loss, a gradient norm or the state is not finite. It is not saved then.
      Stopped: the job was told to stop. The state of the last step is on disk, or, if that step was
        skipped, the state of an earlier one, which the message names.

    No checkpoint is made of a state whose last step was skipped: its parameters, finite but huge,
    may be what spoils every gradient. The checkpoint is then made at a later record.

    Whatever ends the training, a checkpoint that is being written is finished first.
    """
    start = int(state.step)
    shown = jax.process_index() == 0
    programs = _compile(training, state, batch_shapes)
    profile, writer = logging.profile, logging.writer
    postponed = False
    with (
        jax.set_mesh(training.mesh),
        # The host's pace comes in bursts: only its mean over the run says when it ends.
        tqdm(
            total=training.steps, initial=start, desc=training.name, unit="step", smoothing=0,
            disable=not shown,
        ) as bar,
        StepClock(training.mesh, training.steps - start) as clock,
        profile,
        checkpoints.finished(),
        deferred(start) as stop,
        stepping() as told,
    ):  # fmt: skip
        for step in range(start + 1, training.steps + 1):
            profile.before(step, state)
            # The first batch may take long, since its readers start with it.
            before = step - 1 if step > start + 1 else None
            told(before, reading=True)
            bucket, batch = clock.next_batch(batches)
            told(before)
            # An array that is not where the step needs it is an error here, not a copy each time.
            with (
                jax.transfer_guard("disallow"),
                jax.profiler.StepTraceAnnotation(training.name, step_num=step),
            ):
                placed = widened(put(batch, training.mesh), training.mesh)
                told(step)
                state, metrics = programs[bucket](state, training.frozen, placed)
                writer.add(metrics)
            told(None)
            images = len(placed["latents"])
            clock.dispatched(metrics, images, images * logging.model_flops[bucket])
            profile.after(step, state)
            bar.update()
            stopped = stop.reached(step)
            due = checkpoints.due(step) or step == training.steps or stopped
            sample = None if stopped else logging.sample_at(step)
            if step % logging.every == 0 or sample or due:
                speed = clock.read()
                # Raises where a loss is not finite: no such state is ever saved.
                samples = sample(state, step) if sample else {}
                try:
                    record = writer.write(step, speed | samples, step == training.steps)
                except DivergedError as error:
                    if training.diagnosed is None or step not in error.steps:
                        raise
                    found, places = diagnosis(
                        training.diagnosed, state, training.frozen, placed, training.mesh
                    )
                    raise DivergedError(f"{error}; {found}", error.steps, places) from error
                bar.set_postfix_str(_postfix(record))
                if logging.watch is not None:
                    logging.watch(record)
                if due or postponed or checkpoints.overdue():
                    postponed = writer.skipped > 0 and step != training.steps
                    if not postponed:
                        _check_finite(state, step)
                        checkpoints.save(step, state, training.config)
                clock.resume()
            if stopped:
                checkpoints.wait()
                saved = checkpoints.latest() if postponed else step
                where = "the start" if saved is None else f"step {saved}"
                raise stop.stopped(f"{where} of {training.name}")
    checkpoints.wait()
    return state


def _check_finite(state: TrainState, step: int) -> None:
    """Raises DivergedError for a state that is not finite: losses show only the one before."""
    names = not_finite(state)
    if names:
        raise DivergedError(
            f"{' and '.join(names)} became infinite or NaN by the update of step {step}, which is "
            f"not saved: lower the learning rate or clip the gradient, and the same command goes "
            f"on from the last checkpoint"
        )


def _compile(
    training: Training, state: TrainState, batch_shapes: Mapping[Bucket, Any]
) -> dict[Bucket, Any]:
    """The programs of all buckets, compiled side by side.

    Each compilation keeps several cores busy and takes a gigabyte or more of memory, so a machine
    of few cores gains nothing from two at once.
    """

    program = step_program(training.objective, training.shardings, training.mesh)

    def build(bucket: Bucket) -> Any:
        batch = batch_like(batch_shapes[bucket], training.mesh)
        # The mesh in use is set per thread.
        with jax.set_mesh(training.mesh):
            return program.lower(state, training.frozen, batch).compile()

    programs = {}
    # Lines instead of a bar, since XLA writes lines of its own where a compilation is slow.
    _LOG.info("%s: compiling the steps of %s", training.name, counted(len(batch_shapes), "bucket"))
    began = time.monotonic()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        futures = {pool.submit(build, bucket): bucket for bucket in batch_shapes}
        try:
            for future in as_completed(futures):
                programs[futures[future]] = future.result()
                _LOG.info(
                    "%s: compiled %s, %d of %d, after %.0f s", training.name, futures[future].name,
                    len(programs), len(futures), time.monotonic() - began,
                )  # fmt: skip
        except BaseException:
            # A user who stops the job waits only for the compilations that have begun.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return programs


def _postfix(record: Mapping[str, Any]) -> str:
    parts = [
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in record.items()
        if name.startswith("loss")
    ]
    parts.append(f"{record['images_per_second']:.0f} images/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    p50, p95 = (1000 * record[f"step_seconds/{name}"] for name in ("p50", "p95"))
    parts.append(f"{p50:.0f} ms a step (p95 {p95:.0f})")
    parts.append(f"data wait {record['data_wait']:.0%}")
    if "memory_gib/peak" in record:
        parts.append(f"{record['memory_gib/peak']:.1f} GiB")
    return ", ".join(parts)

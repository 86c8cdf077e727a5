"""The training loop: the same for every objective."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import put
from ladd_jax.objectives.base import Objective, TrainState
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.clock import StepClock
from ladd_jax.training.metrics import MetricWriter
from ladd_jax.training.profile import Profile
from ladd_jax.training.program import batch_like, step_program

Batches = Iterator[tuple[Bucket, dict[str, Any]]]


def train(
    name: str,
    objective: Objective,
    state: TrainState,
    shardings: TrainState,
    frozen: Any,
    batches: Batches,
    batch_shapes: Mapping[Bucket, Any],
    *,
    steps: int,
    mesh: Mesh,
    checkpoints: Checkpoints,
    config: dict[str, Any],
    writer: MetricWriter,
    log_every: int,
    profile: Profile,
    model_flops: Mapping[Bucket, int],
    sample: Callable[[TrainState, int], dict[str, float]] | None = None,
    sample_every: int = 0,
) -> TrainState:
    """Trains from `state.step` to `steps`.

    Args:
      name: name on the progress bar.
      objective: the training target; its `step` is compiled for each bucket before the first
        step, and donates the state.
      state: state to start from; its buffers are consumed.
      shardings: shardings of the state.
      frozen: trees that the objective reads and never changes, by name.
      batches: this host's batches from step `state.step` on.
      batch_shapes: the global batch of each bucket, as `jax.ShapeDtypeStruct`.
      steps: the step to end at.
      mesh: mesh of the state and the batches.
      checkpoints: place where the state is saved, at the end in any case.
      config: config that is saved with each checkpoint.
      writer: writer of the metrics.
      log_every: steps between writes, which wait for the device; there is one before each
        checkpoint too. Nothing else waits for it.
      profile: tracer of some of the steps.
      model_flops: model FLOPs of one image of each bucket in a step.
      sample: function of the state and the step, called every `sample_every` steps; the metrics
        that it returns are written too.
      sample_every: steps between calls of `sample`; 0 for never.

    Returns:
      The state of step `steps`, on disk when this returns.

    Raises:
      DivergedError: a loss or a gradient norm is not finite. The state is not saved then.
    """
    start = int(state.step)
    shown = jax.process_index() == 0
    program = step_program(objective, shardings, mesh)
    programs = _compile(name, program, state, frozen, batch_shapes, mesh, shown)
    with (
        jax.set_mesh(mesh),
        # The host's pace comes in bursts: only its mean over the run says when it ends.
        tqdm(
            total=steps, initial=start, desc=name, unit="step", smoothing=0, disable=not shown
        ) as bar,
        StepClock(mesh, steps - start) as clock,
        profile,
    ):
        for step in range(start + 1, steps + 1):
            profile.before(step, state)
            bucket, batch = clock.next_batch(batches)
            # An array that is not where the step needs it is an error here, not a copy each time.
            with (
                jax.transfer_guard("disallow"),
                jax.profiler.StepTraceAnnotation(name, step_num=step),
            ):
                placed = put(batch, mesh)
                state, metrics = programs[bucket](state, frozen, placed)
                writer.add(metrics)
            images = len(placed["latents"])
            clock.dispatched(metrics, images, images * model_flops[bucket])
            profile.after(step, state)
            bar.update()
            sampled = sample is not None and bool(sample_every) and step % sample_every == 0
            due = checkpoints.due(step) or step == steps
            if step % log_every == 0 or sampled or due:
                speed = clock.read()
                extra = sample(state, step) if sample is not None and sampled else {}
                # Raises where a loss is not finite: no such state is ever saved.
                record = writer.write(step, speed | extra)
                bar.set_postfix_str(_postfix(record))
                if due:
                    checkpoints.save(step, state, config)
                clock.resume()
    checkpoints.wait()
    return state


def _compile(
    name: str,
    program: Any,
    state: TrainState,
    frozen: Any,
    batch_shapes: Mapping[Bucket, Any],
    mesh: Mesh,
    shown: bool,
) -> dict[Bucket, Any]:
    """The programs of all buckets, compiled side by side.

    Each compilation keeps several cores busy and takes a gigabyte or more of memory, so a machine
    of few cores gains nothing from two at once.
    """

    def build(bucket: Bucket) -> Any:
        batch = batch_like(batch_shapes[bucket], mesh)
        # The mesh in use belongs to a thread.
        with jax.set_mesh(mesh):
            return program.lower(state, frozen, batch).compile()

    programs = {}
    with (
        ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool,
        tqdm(total=len(batch_shapes), desc=f"{name}: compile", disable=not shown) as bar,
    ):
        futures = {pool.submit(build, bucket): bucket for bucket in batch_shapes}
        for future in as_completed(futures):
            programs[futures[future]] = future.result()
            bar.update()
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

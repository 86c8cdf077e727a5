"""A bucket's entry of the plan: memory, operations, communication, and the expected speed."""

from collections import defaultdict
from typing import Any

from ladd_jax.config import objectives
from ladd_jax.data.buckets import Bucket
from ladd_jax.parallel.mesh import SLICES, network_axes
from ladd_jax.planning.collectives import contents, dcn_bytes, parameter_shapes
from ladd_jax.planning.compile import Compiled, Memory
from ladd_jax.planning.hlo_cost import Cost
from ladd_jax.planning.job import Job


def bucket_entry(job: Job, bucket: Bucket, batch_size: int, program: Compiled) -> dict[str, Any]:
    """What is known of one bucket's step, as JSON: bytes and seconds of a chip, FLOPs of all chips.

    Args:
      job: the planned job.
      bucket: shape of the latents.
      batch_size: records in a global batch: images, or pairs of them for `prefer`.
      program: the step compiled for them. If it did not fit, only memory and the model's own FLOPs
        are known.
    """
    cond = job.batch_shapes(bucket, 1)["cond"]
    model_flops = batch_size * objectives.model_flops(
        job.config, job.objective, bucket, cond, job.training
    )
    entry: dict[str, Any] = {
        "shape": bucket.name,
        "batch": batch_size,
        "hbm": _memory(program.memory),
        "model_flops": model_flops,
        "compile_s": program.seconds,
    }
    cost = program.cost
    if cost is None:
        return entry
    moved = _collectives(job, batch_size // job.divisor, cost)
    seconds = _roofline(job, cost, sent_out=sum(row["dcn_bytes"] for row in moved))
    return entry | {
        "compiled_flops": cost.flops * job.chips,
        "compiled_over_model_flops": cost.flops * job.chips / model_flops,
        "collectives": moved,
        "hbm_bytes": cost.hbm_bytes,
        "roofline_s": seconds,
        "not_counted": cost.unknown,
        **_speed(job, batch_size, max(seconds.values())),
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "arguments": memory.arguments,
        "temporaries": memory.temporaries,
        "capacity": memory.capacity,
        "free_fraction": memory.free_fraction,
        "fits": memory.free_fraction >= 0,
    }


def _collectives(job: Job, images: int, cost: Cost) -> list[dict[str, Any]]:
    """A row for each kind of collective, its axes and what it moves; the largest sum first."""
    parameters = parameter_shapes(job.objective)
    axes = network_axes(job.mesh)
    rows: dict[tuple[str, tuple[str, ...], str], dict[str, float]] = defaultdict(
        lambda: {"times": 0, "bytes": 0, "largest": 0, "dcn_bytes": 0}
    )
    for collective in cost.collectives:
        of = contents(collective, parameters, axes, images)
        row = rows[collective.kind, collective.axes, of]
        row["times"] += collective.times
        row["bytes"] += collective.bytes
        row["largest"] = max(row["largest"], collective.bytes / collective.times)
        row["dcn_bytes"] += dcn_bytes(collective, axes)
    return [
        {"kind": kind, "axes": over, "of": of, **row}
        for (kind, over, of), row in sorted(rows.items(), key=lambda item: -item[1]["bytes"])
    ]


def _roofline(job: Job, cost: Cost, sent_out: float) -> dict[str, float]:
    """Seconds of a step for each resource of a chip, if that one alone set the pace."""
    chip = job.chip
    sent_within = sum(collective.bytes for collective in cost.collectives) - sent_out
    seconds = {
        "compute": cost.flops / chip.bf16_flops,
        "hbm": cost.hbm_bytes / chip.hbm_bandwidth,
        "network": sent_within / chip.interconnect,
    }
    if network_axes(job.mesh).get(SLICES, 1) > 1:
        seconds["dcn"] = sent_out / chip.dcn
    return seconds


def _speed(job: Job, batch_size: int, roofline: float) -> dict[str, float]:
    step = roofline / job.utilisation
    return {
        "step_s": step,
        "images_per_second": batch_size / step,
        "hours": job.steps * step / 3600,
    }

"""The plan in words, on the terminal."""

from collections.abc import Mapping
from typing import Any

from ladd_jax.data.buckets import Bucket
from ladd_jax.methods import METHODS
from ladd_jax.models.base import parameter_count
from ladd_jax.planning.job import Job

_GIB, _GB = 2**30, 10**9

_TRAINED = {"pretrain": "data generator", "pretrain_teacher": "teacher", "prefer": "LoRA"}
"""What is trained where it is not the student."""


def headline(job: Job, topology: str, slices: int, batch_size: int) -> str:
    """Chips, mesh, batch and networks in one line.

    Args:
      job: the planned job.
      topology: name of one slice, or of the GPUs.
      slices: number of slices.
      batch_size: records in a global batch.
    """
    sizes = " x ".join(f"{axis}={size}" for axis, size in job.mesh.shape.items())
    networks = "".join(
        f", {parameter_count(network) / 1e9:.2f} B of the {name}"
        for name, network in job.objective.networks.items()
    )
    return (
        f"{topology}{f' x {slices} slices' if slices > 1 else ''}: {job.chips} x {job.chip.name}, "
        f"mesh {sizes}, batch {batch_size}, {_method(job)}, "
        f"{parameter_count(job.objective.trained) / 1e9:.2f} B parameters of the "
        f"{_TRAINED.get(job.training, 'student')}{networks}"
    )


def _method(job: Job) -> str:
    """What is done to the network, in a word or two."""
    if job.training == "distil":
        return METHODS[job.config.distil.objective].short
    return f"{job.training} by {'DPO' if job.training == 'prefer' else 'flow matching'}"


def print_entry(job: Job, entry: dict[str, Any]) -> None:
    """Prints a bucket's entry, made by `bucket_entry`."""
    hbm = entry["hbm"]
    total = hbm["arguments"] + hbm["temporaries"]
    free = hbm["free_fraction"]
    verdict = (
        f"fits, {free:.0%} free"
        if hbm["fits"]
        else (f"does not fit, {(total - hbm['capacity']) / _GIB:.1f} GiB too many")
    )
    rows, columns = Bucket.parse(entry["shape"]).image_size()
    print(f"\n{entry['shape']} ({rows} x {columns} pixels), compiled in {entry['compile_s']:.0f} s")
    print(
        f"  memory       {hbm['arguments'] / _GIB:.1f} GiB arguments + "
        f"{hbm['temporaries'] / _GIB:.1f} temporaries = {total / _GIB:.1f} of "
        f"{hbm['capacity'] / _GIB:.1f} a chip: {verdict}"
    )
    if "compiled_flops" not in entry:
        print("  the compiler stops where a program does not fit: no more is known")
        return
    print(
        f"  FLOPs        {entry['model_flops']:.3g} of the model, "
        f"{entry['compiled_flops']:.3g} compiled: {entry['compiled_over_model_flops']:.2f} x"
    )
    for item in entry["collectives"]:
        print(
            f"  {item['kind']:<18} over {'+'.join(item['axes']) or 'none':<12} "
            f"{item['of']:<10} {item['bytes'] / _GIB:8.3f} GiB sent, {item['times']:5.0f} times, "
            f"{item['largest'] / 2**20:8.2f} MiB at most"
            + (f", {item['dcn_bytes'] / _GIB:.3f} GiB over DCN" if item["dcn_bytes"] else "")
        )
    roofline = entry["roofline_s"]
    slowest = max(roofline, key=roofline.get)
    print(
        "  roofline     " + ", ".join(f"{name} {value:.3f} s" for name, value in roofline.items())
    )
    if entry["not_counted"]:
        print(f"  not counted  {', '.join(entry['not_counted'])}")
    print(
        f"  at {job.utilisation:.0%} of {slowest}: {entry['step_s']:.2f} s a step, "
        f"{entry['images_per_second']:.1f} {'pairs' if job.training == 'prefer' else 'images'}/s, "
        f"{job.steps} steps in "
        f"{entry['hours']:.1f} h"
    )


def print_run(job: Job, run: Mapping[str, Any]) -> None:
    """Prints what all stages cost, made by `plan.whole_run`."""
    share = f"{job.utilisation:.0%}"
    print(
        f"\nthe whole run on {job.chips} chips, at {share} of their peak where nothing was compiled"
    )
    rows = [*run["stages"], *([{"stage": "all"} | run["all"]] if "all" in run else [])]
    width = max(10, *(len(row["stage"]) for row in rows))
    print(f"  {'':<{width + 14}} {'hours':>9} {'chip-hours':>11} {'GB on disk':>11}")
    for row in rows:
        amount = next((f"{row[unit]} {unit}" for unit in ("records", "steps") if unit in row), "")
        print(
            f"  {row['stage']:<{width}} {amount:>13} {row['hours']:>9.3g} "
            f"{row['chip_hours']:>11.3g} "
            f"{row['bytes'] / _GB:>11.4g}"
        )
    if run["records"] is None and "all" not in run:
        print(
            "  --records=N, the number of prompts or pictures, plans all of them and gives the sum"
        )

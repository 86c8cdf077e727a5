"""`python -m ladd_jax.plan --config=FILE --topology=v5p:4x4x4`: does it fit, how fast is it?

Compiles the very step that training runs for TPUs or GPUs that are not here, each bucket, and reads
memory, operations and communication from what the compiler made. `--mesh=slices=2,data=2` is for
two TPU slices. Without JAX's CUDA plugin `--topology=gpu:80` is an estimate.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from tqdm import tqdm

from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import Config, nearest, to_dict
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.transformer import parameter_count
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.chips import Chip
from ladd_jax.parallel.mesh import (
    HOST,
    SLICES,
    batch_divisor,
    check_batch_size,
    make_mesh,
    mesh_shape,
    network_axes,
)
from ladd_jax.planning.compile import (
    Compiled,
    Memory,
    compile_step,
    contents,
    dcn_bytes,
    largest_batch,
    parameter_shapes,
    shard_bytes,
    step_arguments,
)
from ladd_jax.planning.estimate import recomputed, temporaries
from ladd_jax.planning.topology import (
    cuda_plugin,
    gpu_devices,
    parse_gpu,
    parse_slice,
    slice_devices,
)

FLAGS = flags.FlagValues()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "A TPU slice such as v5p:4x4x4, or gpu:80, gpu:80x8.", flag_values=FLAGS
)
_MESH = flags.DEFINE_string(
    "mesh", "", "Fields of mesh, such as data=2,fsdp=-1.", flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer(
    "batch", 0, "Global batch; 0 is distil.batch_size.", flag_values=FLAGS
)
_BUCKETS = flags.DEFINE_list(
    "buckets", [], "Those of data.buckets to compile; default: all.", flag_values=FLAGS
)
_UTILISATION = flags.DEFINE_float(
    "utilisation",
    0.5,
    "Share of the slowest roofline that the expected speed reaches.",
    flag_values=FLAGS,
)
_LARGEST = flags.DEFINE_bool(
    "largest",
    True,
    "Find the largest batch that fits, by one more compilation.",
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", None, "Where to write the result.", flag_values=FLAGS)

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned."""

    config: Config
    objective: LADD
    chip: Chip
    mesh: Mesh

    @property
    def chips(self) -> int:
        """Of the whole mesh."""
        return math.prod(self.mesh.shape.values())

    @property
    def divisor(self) -> int:
        """What a global batch must be divisible by."""
        return batch_divisor(self.mesh) * self.objective.accumulation

    def batch_shapes(self, bucket: Bucket, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Of the global batch, as the shards of the config give it."""
        data = self.config.data
        return {
            "latents": (batch_size, bucket.height, bucket.width, self.config.model.channels),
            "context": (batch_size, data.text_length, data.text_width),
            "pooled": (batch_size, data.pooled_width),
        }

    def compiled(self, bucket: Bucket, batch_size: int) -> Compiled:
        """The step for one bucket."""
        shapes = self.batch_shapes(bucket, batch_size)
        return compile_step(self.objective, self.mesh, self.chip, shapes)


def step_of(job: Job, bucket: Bucket, batch_size: int, program: Compiled) -> dict[str, Any]:
    """A bucket's entry of the result: bytes and seconds of a chip, FLOPs of a step on all."""
    memory, cost = program.memory, program.cost
    text_length = job.config.data.text_length
    image_flops = objectives.model_flops(job.config, job.objective, bucket, text_length)
    model_flops = batch_size * image_flops
    entry: dict[str, Any] = {
        "shape": bucket.name,
        "batch": batch_size,
        "hbm": {
            "arguments": memory.arguments,
            "temporaries": memory.temporaries,
            "capacity": memory.capacity,
            "free_fraction": memory.free_fraction,
            "fits": memory.free_fraction >= 0,
        },
        "host_bytes": memory.host,
        "model_flops": model_flops,
        "compile_s": program.seconds,
    }
    if cost is None:
        return entry
    parameters = parameter_shapes(job.objective)
    images = batch_size // job.divisor
    axes = network_axes(job.mesh)
    sums: dict[tuple[str, tuple[str, ...], str], list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    for collective in cost.collectives:
        of = contents(collective, parameters, axes, images)
        total = sums[collective.kind, collective.axes, of]
        total[0] += collective.times
        total[1] += collective.bytes
        total[2] = max(total[2], collective.bytes / collective.times)
        total[3] += dcn_bytes(collective, axes)
    sent_out = sum(total[3] for total in sums.values())
    sent_within = sum(collective.bytes for collective in cost.collectives) - sent_out
    seconds = {
        "compute": cost.flops / job.chip.bf16_flops,
        "hbm": cost.hbm_bytes / job.chip.hbm_bandwidth,
        "network": sent_within / job.chip.interconnect,
    }
    if axes.get(SLICES, 1) > 1:
        seconds["dcn"] = sent_out / job.chip.dcn
    return entry | {
        "compiled_flops": cost.flops * job.chips,
        "compiled_over_model_flops": cost.flops * job.chips / model_flops,
        "collectives": [
            {
                "kind": kind,
                "axes": over,
                "of": of,
                "times": times,
                "bytes": sent,
                "largest": most,
                "dcn_bytes": out,
            }
            for (kind, over, of), (times, sent, most, out) in sorted(
                sums.items(), key=lambda item: -item[1][1]
            )
        ],  # fmt: skip
        "hbm_bytes": cost.hbm_bytes,
        "roofline_s": seconds,
        "not_counted": cost.unknown,
        **speed(job, batch_size, max(seconds.values())),
    }


def speed(job: Job, batch_size: int, roofline: float) -> dict[str, float]:
    """What to expect where a share of the slowest roofline is reached."""
    step = roofline / _UTILISATION.value
    return {
        "step_s": step,
        "images_per_second": batch_size / step,
        "hours": job.config.distil.steps * step / 3600,
    }


def show(job: Job, entry: dict[str, Any]) -> None:
    """Prints a bucket's entry."""
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
    if entry["host_bytes"]:
        print(f"  host memory  {entry['host_bytes'] / _GIB:.1f} GiB for each chip of the host")
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
        f"  at {_UTILISATION.value:.0%} of {slowest}: {entry['step_s']:.2f} s a step, "
        f"{entry['images_per_second']:.1f} images/s, {job.config.distil.steps} steps in "
        f"{entry['hours']:.1f} h"
    )


def parse_mesh(text: str, mesh: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the mesh axes, and slices: those of the config, changed by `data=2,fsdp=-1`.

    Raises:
      UserError: a part that is not an axis and a number.
    """
    sizes = dict(mesh)
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if axis not in sizes:
            raise UserError(f"--mesh={text}: {axis!r} is no mesh axis{nearest(axis, sizes)}")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(f"--mesh={text}: {axis} is {size!r}: use a positive number, or -1")
        sizes[axis] = int(size)
    return sizes


def chosen_buckets(config: Config, names: list[str]) -> list[Bucket]:
    """The named buckets, or all of the config.

    Raises:
      UserError: a name that is none of `data.buckets`.
    """
    for name in names:
        if name not in config.data.buckets:
            raise UserError(
                f"--buckets names {name}, which is none of data.buckets: "
                f"{', '.join(config.data.buckets)}"
            )
    return [Bucket.parse(name) for name in names or config.data.buckets]


def watched(bar: tqdm, work: Callable[[], Compiled]) -> Compiled:
    """Runs work in a thread of its own while the bar tells how long it takes."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        wait = 1.0 if sys.stderr.isatty() else 30.0
        while not future.done():
            bar.refresh()
            concurrent.futures.wait([future], wait)
    bar.update()
    return future.result()


def compiled_entries(job: Job, buckets: list[Bucket], batch_size: int) -> dict[str, Any]:
    """Entries of all buckets and the largest batch, each shown as soon as it is known."""
    divisor = job.divisor
    largest = max(buckets, key=lambda bucket: bucket.height * bucket.width)
    other = max(batch_size // 2 // divisor, 1) * divisor
    if other == batch_size:
        other = 2 * batch_size
    entries, result = [], {}
    with tqdm(total=len(buckets) + _LARGEST.value, unit="program") as bar:
        for bucket in buckets:
            bar.set_description(f"compile {bucket.name}, batch {batch_size}")
            program = watched(bar, functools.partial(job.compiled, bucket, batch_size))
            entries.append(step_of(job, bucket, batch_size, program))
            bar.clear()
            show(job, entries[-1])
            if bucket == largest:
                points, capacity = {batch_size: program.memory.total}, program.memory.capacity
        if _LARGEST.value:
            bar.set_description(f"compile {largest.name}, batch {other}")
            program = watched(bar, functools.partial(job.compiled, largest, other))
            points[other] = program.memory.total
            capacity = min(capacity, program.memory.capacity)
            result["largest_batch"] = {
                "batch": largest_batch(points, capacity, divisor),
                "shape": largest.name,
                "from": {str(size): total for size, total in points.items()},
            }
    return {"buckets": entries, **result}


def estimated_entries(job: Job, buckets: list[Bucket], batch_size: int) -> dict[str, Any]:
    """The same by the formula of `training.estimate`, of computation alone."""
    student = architectures.student_architecture(job.config)
    teacher = architectures.teacher_architecture(job.config)
    parameters = parameter_count(job.objective.student)
    divisor = job.divisor

    def entry_of(bucket: Bucket, size: int) -> dict[str, Any]:
        shapes = job.batch_shapes(bucket, size)
        _, arguments = step_arguments(job.objective, job.mesh, shapes)
        memory = Memory(
            shard_bytes(arguments),
            temporaries(
                student,
                teacher,
                job.objective,
                images=size // divisor,
                image_tokens=bucket.height * bucket.width // student.patch**2,
                text_tokens=job.config.data.text_length,
                parameters=parameters,
                fsdp=job.mesh.shape["fsdp"],
            ),
            job.chip.usable_bytes,
            shard_bytes(arguments, HOST),
        )
        entry = step_of(job, bucket, size, Compiled(memory, None, 0.0))
        ratio = recomputed(student.remat, job.objective)
        compiled = entry["model_flops"] * ratio
        compute = compiled / job.chips / job.chip.bf16_flops
        return entry | {
            "estimate": True,
            "compiled_flops": compiled,
            "compiled_over_model_flops": ratio,
            "collectives": [],
            "roofline_s": {"compute": compute},
            "not_counted": [],
            **speed(job, size, compute),
        }

    entries = [entry_of(bucket, batch_size) for bucket in buckets]
    for entry in entries:
        show(job, entry)
    largest = max(buckets, key=lambda bucket: bucket.height * bucket.width)
    points = {}
    for size in (divisor, 2 * divisor):
        hbm = entry_of(largest, size)["hbm"]
        points[size] = hbm["arguments"] + hbm["temporaries"]
    batch = largest_batch(points, job.chip.usable_bytes, divisor)
    return {"buckets": entries, "largest_batch": {"batch": batch, "shape": largest.name}}


def plan(config: Config) -> None:
    """Plans the distillation of a config on the topology of the flags."""
    topology = _TOPOLOGY.value
    if not topology:
        raise UserError("--topology is needed, such as v5e:4x8, v5p:4x4x4, v6e:8x8 or gpu:80")
    if not 0 < _UTILISATION.value <= 1:
        raise UserError(f"--utilisation={_UTILISATION.value} is not a share: use 0.5, or 1")
    buckets = chosen_buckets(config, _BUCKETS.value)
    sizes = parse_mesh(_MESH.value, config.mesh.sizes)
    slices = sizes[SLICES]
    compiler: str | None = "libtpu"
    mesh: Any
    if topology.startswith("gpu"):
        chip, count = parse_gpu(topology)
        if slices != 1:
            raise UserError(f"mesh.slices is {slices} and {topology} is one machine: use 1")
        compiler = cuda_plugin()
        if compiler:
            mesh = make_mesh(sizes, gpu_devices(chip, count))
        else:
            shape = mesh_shape(sizes, count)
            kinds = (jax.sharding.AxisType.Auto,) * len(shape)
            mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape), kinds)
    else:
        chip, _ = parse_slice(topology)
        mesh = make_mesh(sizes, slice_devices(topology, slices))
    batch_size = _BATCH.value or config.distil.batch_size
    check_batch_size(batch_size, mesh, config.distil.accumulation)
    job = Job(config, objectives.ladd(config), chip, mesh)
    laid = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    student, teacher = (
        parameter_count(model) / 1e9 for model in (job.objective.student, job.objective.teacher)
    )
    print(
        f"{topology}{f' x {slices} slices' if slices > 1 else ''}: {job.chips} x {chip.name}, "
        f"mesh {laid}, batch {batch_size}, "
        f"{student:.2f} B parameters of the student, {teacher:.2f} B of the teacher"
    )
    if compiler is None:
        print("an estimate by formula: with pip install .[cuda] the step is compiled for this GPU")
    entries = compiled_entries if compiler else estimated_entries
    versions = {name: importlib.metadata.version(name) for name in ("jax", compiler) if name}
    result = {
        "topology": topology,
        "slices": slices,
        "chips": job.chips,
        "chip": chip.name,
        "mesh": dict(mesh.shape),
        "batch": batch_size,
        "utilisation": _UTILISATION.value,
        **entries(job, buckets, batch_size),
        "model": to_dict(config.model),
        "teacher": to_dict(config.teacher),
        "versions": versions,
    }
    if "largest_batch" in result:
        found = result["largest_batch"]
        print(f"\nlargest batch of {found['shape']} that fits: {found['batch']}")
    if _JSON.value:
        write(Path(_JSON.value), result)


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON, under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.rename(path)

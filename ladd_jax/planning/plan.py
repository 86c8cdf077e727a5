"""The work of `python -m ladd_jax.plan`: does a training fit on chips that are not here?

Compiles the very step that training runs, for each bucket, and reads memory, operations and
communication from the compiled program.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ladd_jax.config import objectives
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.identity import TRAININGS
from ladd_jax.config.own import SECTIONS
from ladd_jax.config.pretraining import settings_of
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.methods import METHODS
from ladd_jax.names import nearest
from ladd_jax.parallel.mesh import SLICES, check_batch_size, make_mesh
from ladd_jax.planning.compile import Compiled
from ladd_jax.planning.entry import bucket_entry
from ladd_jax.planning.job import Job
from ladd_jax.planning.report import headline, print_entry, print_run
from ladd_jax.planning.topology import find_target
from ladd_jax.planning.trainings import check_training
from ladd_jax.planning.whole_run import SOME_RECORDS, known_records, run_costs
from ladd_jax.ranges import NOT_NEGATIVE, Range, check_distinct, check_numbers
from ladd_jax.whole_files import write_text_whole


@dataclasses.dataclass(frozen=True)
class Options:
    """What `plan` is asked to do.

    Attributes:
      topology: a TPU slice such as `v5p:4x4x4`, or GPUs such as `gpu:80x8`.
      mesh: changed sizes of the config's mesh, such as `data=2,fsdp=-1`.
      stage: name of the training whose step is compiled, one of `TRAININGS`.
      batch: global batch of that training; 0 for the config's.
      buckets: names of the buckets to compile; none means all of the config.
      utilisation: share of the slowest roofline that the expected speed reaches, above 0 and at
        most 1.
      records: prompts or pictures of the whole run; 0 counts those that the config names.
      largest: whether to find the largest batch that fits, by one more compilation.
      compile: whether to compile at all; if not, all stages are estimated from their model FLOPs.
      json: file for the result; empty for none.

    Raises:
      UserError: no topology, no such training, a number out of range, or a bucket twice.
    """

    topology: str
    mesh: str = ""
    stage: str = "distil"
    batch: int = 0
    buckets: Sequence[str] = ()
    utilisation: float = 0.5
    records: int = 0
    largest: bool = True
    compile: bool = True
    json: str = ""

    def __post_init__(self) -> None:
        if not self.topology:
            raise UserError("--topology is needed, such as v5e:4x8, v5p:4x4x4, v6e:8x8 or gpu:80")
        if self.stage not in TRAININGS:
            raise UserError(
                f"--stage={self.stage} is not a training{nearest(self.stage, TRAININGS)}"
            )
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation={self.utilisation} is not a share: use 0.5, or 1")
        check_numbers(self, {"batch": NOT_NEGATIVE, "records": Range(least=0, most=10**12)})
        check_distinct(self, "buckets")


def plan(config: Config, options: Options) -> None:
    """Plans a training of a config, prints what it finds and writes it to `options.json`.

    Raises:
      NotFoundError: a file of prompts is named and is not there.
      UserError: there is no such topology, mesh, batch or bucket, the config does not run the
        training, or the compiler is not installed.
    """
    check_training(config, options.stage)
    records = known_records(config, options.records)
    buckets = chosen_buckets(config, options.buckets)
    sizes = parse_mesh(options.mesh, config.mesh.sizes)
    target = find_target(options.topology, sizes[SLICES])
    mesh = make_mesh(sizes, target.devices)
    objective = objectives.of_training(config, options.stage)
    batch_size = options.batch or settings_of(config, options.stage).batch_size
    check_batch_size(batch_size, mesh, objective.accumulation)
    job = Job(config, objective, target.chip, mesh, options.utilisation, options.stage)
    print(headline(job, options.topology, sizes[SLICES], batch_size))
    compiled: dict[str, Any] = {"buckets": []}
    if options.compile:
        compiled = compile_buckets(job, buckets, batch_size, largest=options.largest)
    result = {
        "topology": options.topology,
        "slices": sizes[SLICES],
        "chips": job.chips,
        "chip": target.chip.name,
        "mesh": dict(mesh.shape),
        "stage": options.stage,
        "batch": batch_size,
        "utilisation": options.utilisation,
        **compiled,
        "objective": config.distil.objective,
        "model": to_dict(config.model),
        **({"student": to_dict(config.student)} if config.student.depth else {}),
        "teacher": to_dict(config.teacher),
        **({"dino": to_dict(config.dino)} if METHODS[config.distil.objective].in_pixels else {}),
        **({"own": to_dict(config.own)} if SECTIONS else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", target.compiler)},
    }
    result["run"] = whole_run(job, buckets, batch_size, records, result["buckets"])
    if "largest_batch" in result:
        found = result["largest_batch"]
        print(f"\nlargest batch of {found['shape']} that fits: {found['batch']}")
    if options.json:
        write(Path(options.json), result)


def whole_run(
    job: Job,
    buckets: Sequence[Bucket],
    batch_size: int,
    records: int,
    entries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What all stages cost together; prints it, too.

    Args:
      job: the planned job.
      buckets: the buckets that are planned.
      batch_size: records in a global batch.
      records: prompts or pictures; 0 where their number is not known.
      entries: the buckets' entries.
    """
    steps = {entry["shape"]: entry["step_s"] for entry in entries if "step_s" in entry}
    costs = run_costs(job, buckets, batch_size, records or SOME_RECORDS, steps)
    stages = [cost.entry(job.chips) for cost in costs]
    run: dict[str, Any] = {"records": records or None, "stages": stages}
    # The cost of some records and that of a whole training do not add up.
    if records or all(cost.unit == "steps" for cost in costs):
        names = ("model_flops", "hours", "chip_hours", "bytes")
        run["all"] = {name: sum(stage[name] for stage in stages) for name in names}
    print_run(job, run)
    return run


def parse_mesh(text: str, mesh: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the mesh axes, and of slices: the config's, changed by `data=2,fsdp=-1`.

    Raises:
      UserError: a part that is not an axis and a number.
    """
    sizes = dict(mesh)
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if axis not in sizes:
            raise UserError(f"--mesh={text}: {axis!r} is not a mesh axis{nearest(axis, sizes)}")
        if not re.fullmatch(r"-1|[1-9]\d*", size):
            raise UserError(f"--mesh={text}: {axis} is {size!r}: use a positive number, or -1")
        sizes[axis] = int(size)
    return sizes


def chosen_buckets(config: Config, names: Sequence[str]) -> list[Bucket]:
    """The named buckets, or all of the config.

    Raises:
      UserError: a name is not in `data.buckets`, or these are empty and none is named.
    """
    if not config.data.buckets and not names:
        raise UserError(
            "data.buckets is empty, since encode chooses them for the data: name some with "
            "--buckets, such as --buckets=32x32"
        )
    for name in names:
        if config.data.buckets and name not in config.data.buckets:
            raise UserError(
                f"--buckets names {name}, which is not in data.buckets: "
                f"{', '.join(config.data.buckets)}"
            )
    return [Bucket.parse(name) for name in names or config.data.buckets]


def compile_buckets(
    job: Job, buckets: Sequence[Bucket], batch_size: int, *, largest: bool
) -> dict[str, Any]:
    """Entries of all buckets and the largest batch, each entry printed as soon as it is known.

    Args:
      job: the planned job.
      buckets: buckets to compile, one program for each.
      batch_size: records in a global batch.
      largest: whether to compile the biggest bucket for a second batch, to find the largest that
        fits.
    """
    biggest = max(buckets, key=lambda bucket: bucket.height * bucket.width)
    entries, result = [], {}
    with tqdm(total=len(buckets) + largest, unit="program") as bar:
        for bucket in buckets:
            bar.set_description(f"compile {bucket.name}, batch {batch_size}")
            program = _watched(bar, functools.partial(job.compiled, bucket, batch_size))
            entries.append(bucket_entry(job, bucket, batch_size, program))
            bar.clear()
            print_entry(job, entries[-1])
            if bucket == biggest:
                first = program.memory
        if largest:
            other = max(batch_size // 2 // job.divisor, 1) * job.divisor
            if other == batch_size:
                other = 2 * batch_size
            bar.set_description(f"compile {biggest.name}, batch {other}")
            second = _watched(bar, functools.partial(job.compiled, biggest, other)).memory
            points = {batch_size: first.total, other: second.total}
            capacity = min(first.capacity, second.capacity)
            result["largest_batch"] = {
                "batch": largest_batch(points, capacity, job.divisor),
                "shape": biggest.name,
                "from": {str(size): total for size, total in points.items()},
            }
    return {"buckets": entries, **result}


def largest_batch(points: dict[int, float], capacity: float, divisor: int) -> int:
    """The largest global batch that fits, by a line through the memory of two batches.

    Args:
      points: bytes of a chip by global batch, for two batches.
      capacity: bytes that a chip has.
      divisor: number that a batch must be a multiple of.
    """
    (a, low), (b, high) = sorted(points.items())
    slope = (high - low) / (b - a)
    if slope <= 0:
        return b
    return max(math.floor((capacity - low) / slope + a) // divisor * divisor, 0)


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes JSON, under its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, json.dumps(result, indent=2) + "\n")


def _watched(bar: tqdm, work: Callable[[], Compiled]) -> Compiled:
    """Runs work in a thread of its own while the bar shows how long it takes."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        wait = 1.0 if sys.stderr.isatty() else 30.0
        while not future.done():
            bar.refresh()
            concurrent.futures.wait([future], wait)
    bar.update()
    return future.result()

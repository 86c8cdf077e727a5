"""TPU slices and GPUs that are not here: their devices, to compile programs for."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ladd_jax.errors import UserError
from ladd_jax.parallel.chips import Chip, chip_named

# Slices that Google Cloud rents. Of v5p also multiples of 4 in ascending order up to 16x16x24.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES = {"v5e": _FLAT, "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4"), "v6e": _FLAT}
_LARGEST_V5P = (16, 16, 24)

# libtpu looks for a TPU and its host at start-up. With these it believes that there is one, asks no
# metadata server and does not take the lock on the chips.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


# By `Chip.name`: compute capability, multiprocessors, float32 units and KiB of shared memory of one
# of them, MiB of L2, GHz. CUDA C++ Programming Guide, "Compute Capabilities"; NVIDIA's white papers
# of the A100 and H100. An H200 is an H100 with more and faster memory.
_HOPPER = ((9, 0), 132, 128, 228, 50, 1.98)
_GPUS = {"A100 40GB": ((8, 0), 108, 64, 164, 40, 1.41), "H100": _HOPPER, "H200": _HOPPER}

# The form in which XLA reads the description of a GPU, and writes that of a GPU that is there.
_GPU_DESCRIPTION = """
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cores}
  fpus_per_core: {units}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {block}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips to compile for.

    Attributes:
      chip: the chip that each device is.
      devices: devices that JAX compiles for; nothing runs on them.
      compiler: name of the distribution that brings the compiler.
    """

    chip: Chip
    devices: list[Any]
    compiler: str


def find_target(name: str, slices: int = 1) -> Target:
    """Chips by the name of their topology.

    Args:
      name: a TPU slice such as `v5p:4x4x4`, or `gpu:80`, `gpu:80x8`.
      slices: number of such slices that a data-centre network joins; 1 for GPUs.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    if not name.startswith("gpu"):
        chip, _ = parse_slice(name)
        return Target(chip, slice_devices(name, slices), "libtpu")
    chip, count = parse_gpu(name)
    if slices != 1:
        raise UserError(f"mesh.slices is {slices} and {name} is one machine: use 1")
    return Target(chip, gpu_devices(chip, count), required_cuda_plugin())


def parse_slice(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Chip and sizes of a slice such as `v5p:4x4x4`.

    Raises:
      UserError: the name is not CHIP:SIZES, the chip is not known, or there is no such slice.
    """
    match = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if not match:
        raise UserError(
            f"topology {name!r} is not CHIP:SIZES, such as v5e:4x8, v5p:4x4x4 or v6e:8x8"
        )
    chip, sizes = match[1], tuple(map(int, match[2].split("x")))
    if chip not in _SLICES:
        raise UserError(
            f"topology {name!r} is of chip {chip!r}, which is not one of {', '.join(_SLICES)}: "
            f"use one of them"
        )
    cubes = (
        chip == "v5p"
        and len(sizes) == 3
        and list(sizes) == sorted(sizes)
        and all(s % 4 == 0 and s <= most for s, most in zip(sizes, _LARGEST_V5P, strict=True))
    )
    if match[2] not in _SLICES[chip] and not cubes:
        more = ", or ascending multiples of 4 up to 16x16x24" if chip == "v5p" else ""
        raise UserError(
            f"topology {name!r} does not exist: slices of {chip} are "
            f"{', '.join(_SLICES[chip])}{more}"
        )
    return chip_named(chip), sizes


def slice_devices(name: str, slices: int = 1) -> list[Any]:
    """Devices of one or several slices, which compile and do not run.

    Args:
      name: name of the slice, such as `v5p:4x4x4`.
      slices: number of them that a data-centre network joins.

    Raises:
      UserError: there is no such slice, or libtpu is not installed or does not know it.
    """
    _, sizes = parse_slice(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu is not installed: pip install ladd_jax[plan] (it needs no TPU)")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Hosts have 2x2 chips, except in a slice of a single chip.
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if set(sizes) == {1} else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"libtpu has no topology {name!r} ({error}): use another slice") from error


def parse_gpu(name: str) -> tuple[Chip, int]:
    """Chip and count of `gpu:80`, one GPU of that many GiB, or `gpu:80x8`.

    Raises:
      UserError: another form, or a memory that no known GPU has.
    """
    known = {40: "A100 40GB", 80: "H100", 141: "H200"}
    match = re.fullmatch(r"gpu:(\d+)(?:x([1-9]\d*))?", name)
    if not match or int(match[1]) not in known:
        kinds = ", ".join(f"gpu:{size} ({chip})" for size, chip in known.items())
        raise UserError(
            f"topology {name!r} is not one of {kinds}: use one of them, or gpu:80x8 for eight GPUs"
        )
    return chip_named(known[int(match[1])]), int(match[2] or 1)


def cuda_plugin() -> str | None:
    """The distribution with XLA's compiler for GPUs; None without it or pip's package of cuDNN."""
    # `find_spec` raises for a package whose parent is missing.
    if not all(map(importlib.util.find_spec, ("jax_plugins", "nvidia"))):
        return None
    if importlib.util.find_spec("nvidia.cudnn") is None:
        return None
    found = (v for v in (12, 13) if importlib.util.find_spec(f"jax_plugins.xla_cuda{v}"))
    return next((f"jax-cuda{version}-pjrt" for version in found), None)


def required_cuda_plugin() -> str:
    """The distribution of `cuda_plugin`.

    Raises:
      UserError: it is not installed.
    """
    plugin = cuda_plugin()
    if plugin is None:
        raise UserError(
            "XLA's compiler for GPUs is not installed: pip install ladd_jax[cuda] (it needs no GPU)"
        )
    return plugin


def gpu_devices(chip: Chip, count: int) -> list[Any]:
    """GPUs of one machine, which compile and do not run; no GPU is needed for it.

    Args:
      chip: one of the chips of `parse_gpu`.
      count: number of GPUs, which NVLink joins.

    Raises:
      UserError: `cuda_plugin` is None, or does not load.
    """
    plugin = required_cuda_plugin()
    jax.local_devices()  # Plugins are looked for when the first backend starts.
    # Number of NVLink domains, of hosts in each, and of GPUs in each host.
    options = {"target_config": gpu_description(chip), "topology": f"1x1x{count}"}
    try:
        return topologies.get_topology_desc("", "cuda", **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(
            f"{plugin} does not describe {count} x {chip.name} ({error}): install its version "
            f"for jax {jax.__version__}"
        ) from error


def gpu_description(chip: Chip) -> str:
    """What XLA must know about a GPU to compile for it: a `GpuTargetConfigProto` as text."""
    (major, minor), cores, units, shared, l2, clock = _GPUS[chip.name]
    return _GPU_DESCRIPTION.format(
        kind=chip.device_kinds[0],
        major=major,
        minor=minor,
        cores=cores,
        units=units,
        clock=clock,
        memory=chip.hbm_bytes,
        bandwidth=int(chip.hbm_bandwidth),
        l2=l2 * 2**20,
        shared=shared * 2**10,
        block=(shared - 1) * 2**10,  # All but the 1 KiB that is reserved for each block.
    )

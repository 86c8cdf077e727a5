"""The device mesh and the rules that place arrays on it.

Parameters name their dimensions with logical axes (`embed`, `mlp`, ...); one table maps those to
the mesh axes `data` (replicated parameters), `fsdp` (sharded parameters, sharded batch) and
`tensor` (sharded features). On several TPU slices, joined only by a data-centre network, `data`
spans the slices and the other axes stay inside one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ladd_jax.errors import UserError
from ladd_jax.ranges import check_choice

MESH_AXES = ("data", "fsdp", "tensor")

SLICES = "slices"
"""Key beside the sizes of the axes: the number of TPU slices that `data` spans.

`network_axes` lists it as an axis of its own."""

Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
}

ACTIVATION_RULES: Rules = {**RULES, "embed": None}
"""The same for activations, and for parameters while they are in use."""


def mesh_shape(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Sizes of the mesh axes, in which an axis of -1 takes the devices that are left.

    Raises:
      UserError: an unknown axis, a size that is neither -1 nor positive, two sizes of -1, sizes
        whose product is not the number of devices, or slices that do not divide `data`.
    """
    slices = sizes.get(SLICES, 1)
    if slices < 1:
        raise UserError(f"mesh.slices is {slices}: use 1, or the number of TPU slices")
    sizes = {axis: size for axis, size in sizes.items() if axis != SLICES}
    for axis, size in sizes.items():
        check_choice(axis, "mesh axis", *MESH_AXES)
        if size < 1 and size != -1:
            raise UserError(f"mesh axis {axis} has size {size}: use a positive number, or -1")
    shape = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"mesh axes {' and '.join(free)} are both -1: give one of them a size")
    fixed = math.prod(size for size in shape.values() if size != -1)
    described = " x ".join(f"{axis}={size}" for axis, size in shape.items())
    if fixed > devices:
        raise UserError(
            f"the mesh {described} needs {fixed} devices and there are {devices}: "
            f"lower a size or use -1"
        )
    if devices % fixed or (not free and fixed != devices):
        raise UserError(
            f"the mesh {described} does not fill {devices} devices: use a -1, or sizes whose "
            f"product is {devices}"
        )
    shape = {axis: devices // fixed if size == -1 else size for axis, size in shape.items()}
    if shape["data"] % slices:
        raise UserError(
            f"data={shape['data']} does not divide over {slices} slices: use mesh.data={slices} "
            f"with mesh.fsdp=-1, or another multiple of {slices}"
        )
    return shape


def make_mesh(sizes: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor` over the devices (default: all).

    Args:
      sizes: sizes of the axes as `mesh_shape` takes them, and `slices`.
      devices: the devices of that many slices.

    Raises:
      UserError: what `mesh_shape` and `split_slices` raise.
    """
    grid = device_grid(sizes, jax.devices() if devices is None else list(devices))
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def device_grid(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the order of a mesh, `[data, fsdp, tensor]`: slices one after the other on `data`.

    Inside a slice they follow its torus.
    """
    shape = mesh_shape(sizes, len(devices))
    slices = sizes.get(SLICES, 1)
    inner = (shape["data"] // slices, shape["fsdp"], shape["tensor"])
    parts = [
        # Splits an axis of the torus only if no whole axes make up a size.
        mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True)
        for part in split_slices(devices, slices)
    ]
    return np.concatenate(parts)


def split_slices(devices: Sequence[Any], slices: int) -> list[list[Any]]:
    """The devices of each slice.

    On TPU a device says which slice it belongs to. Elsewhere each slice is the same number of
    consecutive processes.

    Raises:
      UserError: the devices belong to another number of slices, or the slices differ in size.
    """
    on_tpu = devices[0].platform == "tpu"
    if slices == 1 and not on_tpu:
        return [list(devices)]
    of, unit = ("slice_index", "slice") if on_tpu else ("process_index", "process")
    units: dict[int, list[Any]] = defaultdict(list)
    for device in devices:
        units[getattr(device, of, 0)].append(device)
    count = len(units)
    if count % slices or (on_tpu and count != slices):
        plural = unit if count == 1 else "slices" if on_tpu else "processes"
        raise UserError(
            f"mesh.slices is {slices} and the devices are of {count} {plural}: use "
            f"mesh.slices={count} and a data axis that it divides"
        )
    together = count // slices
    ordered = [units[index] for index in sorted(units)]
    parts = [sum(ordered[i : i + together], []) for i in range(0, count, together)]
    lengths = sorted({len(part) for part in parts})
    if len(lengths) > 1:
        raise UserError(
            f"the slices have {' and '.join(map(str, lengths))} devices: use slices of one size"
        )
    return parts


def network_axes(mesh: Mesh) -> dict[str, int]:
    """Sizes of a mesh's axes, with the part of `data` that leaves a slice apart, as `slices`.

    They are in the order of the mesh's devices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    if slices == 1 or mesh.devices.flat[0].platform != "tpu":
        return dict(mesh.shape)
    return {SLICES: slices, **mesh.shape, "data": mesh.shape["data"] // slices}


def process_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh for work that every process does alone, such as sampling its own shards.

    With one process it is the mesh of these sizes, otherwise all devices of this process with the
    parameters sharded over them.
    """
    if jax.process_count() == 1:
        return make_mesh(sizes)
    return make_mesh({"fsdp": -1}, jax.local_devices())


def batch_divisor(mesh: Mesh) -> int:
    """What a global batch must be divisible by."""
    return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))


def check_batch_size(batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises UserError if a global batch does not divide over the mesh and micro-batches."""
    divisor = batch_divisor(mesh) * accumulation
    if batch_size % divisor:
        below = batch_size - batch_size % divisor
        choices = f"{below} or {below + divisor}" if below else f"{divisor}"
        parts = f"data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}"
        if accumulation > 1:
            parts += f" x accumulation={accumulation}"
        raise UserError(
            f"batch_size {batch_size} is not divisible by {divisor} ({parts}): use {choices}"
        )


def partition_spec(axes: tuple[str | None, ...], rules: Rules = RULES) -> PartitionSpec:
    """The layout of an array from the logical names of its dimensions.

    Raises:
      UserError: an unknown logical axis, or two dimensions on one mesh axis.
    """
    entries: list[Any] = []
    used: dict[str, str] = {}
    for axis in axes:
        if axis is not None and axis not in rules:
            raise UserError(f"logical axis {axis!r} has no rule: add one to {sorted(rules)}")
        entry = None if axis is None else rules[axis]
        for name in (entry,) if isinstance(entry, str) else entry or ():
            if name in used:
                raise UserError(
                    f"logical axes {used[name]!r} and {axis!r} of {axes} both lie on mesh axis "
                    f"{name!r}: give one of them another rule"
                )
            used[name] = str(axis)
        entries.append(entry)
    return PartitionSpec(*entries)


def parameter_shardings(mesh: Mesh, shapes: Any, axes: Any, rules: Rules = RULES) -> Any:
    """Tree of `NamedSharding` for a tree of parameters.

    A dimension that its mesh axes do not divide stays whole, so small networks run on any mesh.

    Args:
      mesh: where the parameters go.
      shapes: tree of arrays or `jax.ShapeDtypeStruct`.
      axes: the same tree with a tuple of logical axes at each leaf.
      rules: mesh axes of each logical axis.
    """

    def sharding(leaf: Any, names: tuple[str | None, ...]) -> NamedSharding:
        spec = []
        for size, entry in zip(leaf.shape, partition_spec(names, rules), strict=True):
            parts = (entry,) if isinstance(entry, str) else entry or ()
            whole = size % math.prod(mesh.shape[part] for part in parts)
            spec.append(None if whole else entry)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, shapes, axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data` and `fsdp`, the rest whole."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_rows(mesh: Mesh, batch_size: int, devices: Any = None) -> np.ndarray:
    """The rows of a global batch that devices (default: this process's own) hold.

    Devices that differ only on `tensor` hold the same rows.

    Returns:
      int64 `[rows]`, ascending.
    """
    index = batch_sharding(mesh).devices_indices_map((batch_size,))
    own = mesh.local_devices if devices is None else devices
    parts = {index[device][0].indices(batch_size)[:2] for device in own}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(parts)])


def lay(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards an array that every process holds whole, without communication."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Shards an activation over the mesh in use; without one (`jax.set_mesh`) does nothing.

    Its features are not sharded over `fsdp`, which belongs to the batch.
    """
    return _lay(x, axes, ACTIVATION_RULES)


def gather(parameter: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter as the computation needs it: its `fsdp` shards gathered, `tensor` ones not.

    Called where the parameter is used, so that a scan over blocks gathers one block at a time and
    the partitioner never moves activations instead.
    """
    return _lay(parameter, axes, ACTIVATION_RULES)


def scatter(parameter: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter, or its gradient, as parameters are kept: the inverse of `gather`."""
    return _lay(parameter, axes, RULES)


def device_kind() -> str:
    """Kind of the devices that a program is traced for, such as `TPU v5` or `NVIDIA H200`.

    The devices of the mesh in use, which need not be on this machine, or else this machine's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.local_devices()[0]
    return device.device_kind


def on_each_device(
    function: Callable[..., jax.Array], *axes: str | None
) -> Callable[..., jax.Array]:
    """A function that each device runs on its own part of the arrays.

    Args:
      function: function of arrays, independent along the dimensions that are sharded.
      *axes: logical axes of the arrays' dimensions and of the result's. A dimension that its mesh
        axes do not divide is whole on each device.
    """

    def run(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        specs = tuple(_spec(x, axes, ACTIVATION_RULES, mesh) for x in arrays)
        return jax.shard_map(function, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    return run


def _lay(x: jax.Array, axes: tuple[str | None, ...], rules: Rules) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(x, axes, rules, mesh))


def _spec(x: jax.Array, axes: tuple[str | None, ...], rules: Rules, mesh: Any) -> PartitionSpec:
    spec = []
    for size, entry in zip(x.shape, partition_spec(axes, rules), strict=True):
        parts = (entry,) if isinstance(entry, str) else entry or ()
        count = int(np.prod([mesh.shape[part] for part in parts]))
        spec.append(None if size % count else entry)
    return PartitionSpec(*spec)

"""`python -m benchmarks.load [--stored=bfloat16] [--dense] [--json=FILE]`: a host's memory to load.

Writes a file with the full shapes of SD3.5-Large, 8.1 billion parameters. Only its position table
takes room on the disk: the rest is a hole, which reads as zeros. With `--dense` it is 16 GB of
random bytes instead. Then reads in bfloat16 what one device of a mesh keeps, as `load_mmdit` does
for the devices of its own host, and measures the peak of resident memory, mapped pages of files
included. A peak above the limit ends in an error.
"""

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.result_files import write_result

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_STORED = flags.DEFINE_enum(
    "stored", "bfloat16", ["bfloat16", "float16", "float32"], "Dtype of the file."
)
_DENSE = flags.DEFINE_bool("dense", False, "Fill the file instead of leaving a hole.")
_DEVICES = flags.DEFINE_integer("devices", 16, "Simulated devices of the mesh.")

LIMIT = 1.3
"""Allowed peak over what is kept, in units of the largest tensor."""


def memory(field: str) -> int:
    """Bytes of `VmRSS` (resident memory now) or `VmHWM` (its peak)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def write(folder: Path, config: Any, dtype: Any, dense: bool) -> list[int]:
    """Writes a transformer as diffusers stores it, and returns its tensors' sizes in bytes."""
    import numpy as np

    from ladd_jax.models.sd3 import diffusers_layout
    from ladd_jax.models.sd3.positions import position_table
    from ladd_jax.models.sd3.transformer import mmdit
    from ladd_jax.weights.files import make_header
    from ladd_jax.weights.layout import tensor_shapes
    from ladd_jax.weights.source import WEIGHTS

    ours = mmdit(config).shapes
    table = position_table(config, dtype)
    shapes = {diffusers_layout.POSITIONS: table.shape}
    shapes |= tensor_shapes(diffusers_layout.layout(config, ours), ours)
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes.values()]
    with (folder / f"{WEIGHTS}.safetensors").open("wb") as file:
        file.write(make_header(shapes, dtype, {"format": "pt"}))
        start = file.tell()
        file.write(table.tobytes())
        if dense:
            # Bytes below 64 are finite numbers below 2 in each dtype.
            noise = np.random.default_rng(0).bytes(2**24).translate(bytes(range(64)) * 4)
            for size in sizes[1:]:
                for first in range(0, size, len(noise)):
                    file.write(noise[: size - first])
        file.truncate(start + sum(sizes))
    description = diffusers_layout.config_json(config, sample_size=128)
    (folder / "config.json").write_text(json.dumps(description))
    return sizes


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={_DEVICES.value}"
    import jax
    import jax.numpy as jnp

    from ladd_jax.models.sd3.transformer import MMDiTConfig
    from ladd_jax.models.sd3.weights import open_mmdit
    from ladd_jax.parallel.mesh import make_mesh, parameter_shardings
    from ladd_jax.weights.transfer import bounds, read_shards

    dtype = jnp.dtype(jnp.bfloat16)
    config = MMDiTConfig(
        depth=38, width=2432, num_heads=38, qk_norm=True, position_base=48, position_start=-16,
        dtype=dtype, param_dtype=dtype,
    )  # fmt: skip
    mesh = make_mesh({"fsdp": -1})
    device = mesh.devices.flat[0]
    with tempfile.TemporaryDirectory() as folder:
        sizes = write(Path(folder), config, jnp.dtype(_STORED.value), _DENSE.value)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
        start = time.perf_counter()
        checkpoint = open_mmdit(folder, dtype)
        opened = time.perf_counter() - start
        shapes, axes = checkpoint.model.shapes, checkpoint.model.axes
        shardings = parameter_shardings(mesh, shapes, axes)
        kept = []
        for leaf, shape, sharding in zip(
            *map(jax.tree.leaves, (checkpoint.layout, shapes, shardings)), strict=True
        ):
            box = bounds(sharding.devices_indices_map(shape.shape)[device], shape.shape)
            kept += read_shards(
                leaf.pieces(shape.shape),
                [box],
                lambda name: checkpoint.tensors[name].map(),
                shape.dtype,
            )
        seconds = time.perf_counter() - start
        peak = memory("VmHWM") - before
    kept_bytes = sum(shard.nbytes for shard in kept)
    limit = LIMIT * max(sizes) + kept_bytes
    result = {
        "peak_bytes": peak,
        "limit_bytes": int(limit),
        "kept_bytes": kept_bytes,
        "largest_tensor_bytes": max(sizes),
        "over_kept_in_largest_tensors": (peak - kept_bytes) / max(sizes),
        "seconds": {"open": opened, "all": seconds},
        "setting": {
            "file_bytes": sum(sizes),
            "tensors": len(sizes),
            "devices": _DEVICES.value,
            "mesh": "fsdp",
            "stored": _STORED.value,
            "dense": _DENSE.value,
            "dtype": dtype.name,
            "jax": jax.__version__,
        },
    }
    print(
        f"one device of {_DEVICES.value} keeps {kept_bytes / 2**20:.0f} MiB of "
        f"{sum(sizes) / 2**20:.0f} MiB; the largest tensor has {max(sizes) / 2**20:.0f} MiB\n"
        f"peak over what was there before: {peak / 2**20:.0f} MiB, "
        f"limit {limit / 2**20:.0f} MiB; {seconds:.1f} s, of which {opened:.1f} s to open"
    )
    write_result(_JSON.value, result)
    if peak > limit:
        raise SystemExit(f"the peak of {peak} bytes exceeds {limit:.0f}")


if __name__ == "__main__":
    app.run(main)

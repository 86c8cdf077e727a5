"""`python -m benchmarks.scaling [--json=FILE]`: what a step costs a device as devices are added.

Compiles the fused LADD step for 1, 2, 4 and 8 simulated CPU devices with the same number of images
on each (weak scaling), and reads the FLOPs and the communication of one device from the compiled
programs. Nothing runs: no time is measured, and the CPU's compiler fuses less than the TPU's. Each
number of devices has its own process.

The ideal to compare with is a ring of n devices along an axis. S, T and K are the bytes of the
parameters of student, teacher and heads in the dtype of computation:

- A device has as many FLOPs as one device alone: no work is repeated on all devices.
- `data`: gradients of student and heads are summed once, 2 (n - 1) / n (S + K). Besides these, only
  norms and metrics are exchanged, which are scalars.
- `fsdp`: a block's parameters are gathered when it runs and dropped afterwards. The student runs
  forward, then backward with its forward pass once more (remat): 2 gathers. The teacher runs
  forward and backward on fakes, and forward on real samples: 3. Heads judge fakes, real samples,
  and fakes again: 3. Gradients are scattered as they are summed: (n - 1) / n (2 S + 3 T + 3 K +
  S + K). The CPU's compiler has no reduce-scatter: it sums by an all-reduce, twice the bytes, and
  cuts the result.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.result_files import write_result
from ladd_jax.models.base import Model
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.mesh import batch_divisor, make_mesh
from ladd_jax.planning.compile import step_arguments
from ladd_jax.planning.hlo_cost import program_cost
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.program import step_program

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_DEPTH = flags.DEFINE_integer("depth", 4, "Blocks of teacher and student.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the blocks.")
_SIDE = flags.DEFINE_integer("side", 32, "Side of the latents.")
_IMAGES = flags.DEFINE_integer("images", 2, "Images on each device.")
_DEVICES = flags.DEFINE_integer("devices", 0, "Compile for only so many, in this process.")

_COUNTS = (1, 2, 4, 8)
_TEXT_LENGTH = 77


def meshes(count: int) -> list[dict[str, int]]:
    """Sizes of the meshes to compile for a number of devices."""
    if count == 1:
        return [{"data": 1}]
    mixed = [{"data": 2, "fsdp": count // 2}] if count > 2 else []
    return [{"data": count}, {"fsdp": count}, *mixed]


def objective() -> LADD:
    """The step as `configs/sd3_turbo.py` has it, on a network of the flags' size, in float32."""
    config = MMDiTConfig(
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_heads=_WIDTH.value // 64,
        context_width=256,
        pooled_width=256,
        remat="attention",
    )
    model = mmdit(config)
    head_config = HeadConfig(config.width, config.pooled_width)
    return LADD(
        student=model,
        critic=FeatureCritic(model, head(head_config), head_stack(head_config, config.depth)),
        optimizer=Optimizer(1e-5, beta1=0.0, clip_norm=1.0),
        heads_optimizer=Optimizer(1e-4, beta1=0.0, clip_norm=1.0),
    )


def bytes_of(model: Model) -> int:
    """Bytes of all of a model's parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.shapes))


def ideal(target: LADD, sizes: dict[str, int]) -> float:
    """Bytes that a device sends in a step, by the formulas above."""
    student, heads = bytes_of(target.student), bytes_of(target.critic.heads)
    teacher = sum(map(bytes_of, target.networks.values()))
    data, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    learnt = student + heads
    gathered = (fsdp - 1) / fsdp * (2 * student + 3 * teacher + 3 * heads)
    # Each device sums its part of the sum over `fsdp` over `data`.
    return gathered + (fsdp - 1) / fsdp * learnt + 2 * (data - 1) / data * learnt / fsdp


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """FLOPs and communication of a device on a mesh of these sizes."""
    target, mesh = objective(), make_mesh(sizes)
    batch, side = _IMAGES.value * batch_divisor(mesh), _SIDE.value

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    cond = {"context": array(_TEXT_LENGTH, 256), "pooled": array(256)}
    shapes = {"latents": array(side, side, 16), "cond": cond}
    shardings, arguments = step_arguments(target, mesh, shapes)
    with jax.set_mesh(mesh):
        program = step_program(target, shardings, mesh).lower(*arguments).compile()
    cost = program_cost(program.as_text(), dict(mesh.shape))
    sent: dict[str, float] = defaultdict(float)
    for collective in cost.collectives:
        sent[f"{collective.kind} over {'+'.join(collective.axes)}"] += collective.bytes
    return {
        "mesh": dict(mesh.shape),
        "batch": batch,
        "flops": cost.flops,
        "bytes": dict(sorted(sent.items(), key=lambda item: -item[1])),
        "ideal_bytes": ideal(target, sizes),
        "not_counted": cost.unknown,
    }


def measured_apart(count: int) -> list[dict[str, Any]]:
    """`measure` for all meshes of a number of devices, in a process that simulates them."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Costs are read from the partitioned program, which this level does not change.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} "
        "--xla_backend_optimization_level=0",
    }
    names = ("depth", "width", "side", "images")
    given = [f"--{name}={flags.FLAGS[name].value}" for name in names]
    command = [sys.executable, "-m", "benchmarks.scaling", f"--devices={count}", *given]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    if _DEVICES.value:
        print(json.dumps([measure(sizes) for sizes in meshes(_DEVICES.value)]))
        return
    rows: list[dict[str, Any]] = []
    print(f"{'mesh':<26}{'GFLOPs':>9}{'of 1':>7}{'MiB sent':>11}{'of ideal':>10}")
    for count in _COUNTS:
        for row in measured_apart(count):
            rows.append(row)
            name = " x ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1)
            sent, wanted = sum(row["bytes"].values()), row["ideal_bytes"]
            row["flops_of_one"] = row["flops"] / rows[0]["flops"]
            row["bytes_of_ideal"] = sent / wanted if wanted else None
            ratio = f"{sent / wanted:.2f}" if wanted else "-"
            print(
                f"{name or 'one device':<26}{row['flops'] / 1e9:>9.2f}{row['flops_of_one']:>7.3f}"
                f"{sent / 2**20:>11.2f}{ratio:>10}"
            )
            for kind, bytes_ in row["bytes"].items():
                print(f"    {kind:<34}{bytes_ / 2**20:>19.2f}")
    if _JSON.value:
        names = ("depth", "width", "side", "images")
        result = {
            "settings": {name: flags.FLAGS[name].value for name in names},
            "jax": jax.__version__,
            "rows": rows,
        }
        write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

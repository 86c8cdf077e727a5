"""`python -m benchmarks.memory --config=FILE [--batch=1] [--capacity=80]`: does a step fit?

Compiles the distillation step of a config for one device at its largest bucket, without data or
weights, and prints the bytes of its arguments and temporaries as XLA's CPU compiler plans them.
It uses plain attention, which keeps the softmax's weights; fused attention on GPUs and TPUs needs
less.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from benchmarks.result_files import write_result
from ladd_jax.config import objectives, typed
from ladd_jax.config.architectures import read_architectures
from ladd_jax.data.buckets import Bucket

_CONFIG = config_flags.DEFINE_config_file("config", "configs/sd3_turbo.py:size=medium", "A config.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images in the device's batch.")
_CAPACITY = flags.DEFINE_float("capacity", 80.0, "Memory of the device, in gigabytes (1e9 bytes).")
_JSON = flags.DEFINE_string("json", None, "Where to write the result.")


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(_: list[str]) -> None:
    """Compiles and prints."""
    read_architectures(_CONFIG.value)
    config = typed(_CONFIG.value)
    objective = objectives.distillation(config)
    frozen = {name: network.shapes for name, network in objective.networks.items()}
    state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
    bucket = max(map(Bucket.parse, config.data.buckets), key=lambda b: b.height * b.width)
    b, data = _BATCH.value, config.data

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b, *shape), jnp.float32)

    batch = {
        "latents": array(bucket.height, bucket.width, config.model.channels),
        "cond": {
            "context": array(data.text_length, data.text_width),
            "pooled": array(data.pooled_width),
        },
    }
    null = {
        name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        for name, leaf in batch["cond"].items()
    }
    start = time.monotonic()
    program = jax.jit(objective.step, donate_argnums=0).lower(state, frozen | {"null": null}, batch)
    analysis = program.compile().memory_analysis()
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    total = (arguments + temporaries) / 1e9
    parts = {
        "student": state.params, "average": state.ema, "constant networks": frozen,
        "optimizer": state.optimizer, "heads with optimizer": (state.heads, state.heads_optimizer),
        "batch": batch,
    }  # fmt: skip
    sizes = {name: _bytes(tree) / 1e9 for name, tree in parts.items()}
    for name, size in sizes.items():
        print(f"{name:>22}: {size:7.2f} GB")
    print(f"{'temporaries':>22}: {temporaries / 1e9:7.2f} GB")
    free = 1 - total / _CAPACITY.value
    print(
        f"{total:.1f} of {_CAPACITY.value:g} GB for {b} images of {bucket.name} latents: "
        f"{'fits' if free >= 0 else 'does not fit'}, {free:.0%} free "
        f"(compiled in {time.monotonic() - start:.0f} s)"
    )
    if _JSON.value:
        result = {
            "setting": {"batch": b, "bucket": bucket.name, "depth": config.model.depth},
            "gigabytes": sizes | {"temporaries": temporaries / 1e9, "total": total},
            "capacity": _CAPACITY.value,
            "free_fraction": free,
        }
        write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

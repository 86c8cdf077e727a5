r"""`python -m benchmarks.torch_mmdit [--json=FILE]`: our MMDiT against diffusers' in torch.

Times a forward pass with the gradients of all weights: ours scanned and unrolled, torch eager and
compiled, all without recomputation. Weights, inputs and dtype are the same, and the programs run
alternately in one process. Before that, outputs and gradients are compared on the host. For six
blocks of SD3-Medium at 1024^2, on a GPU:

    python -m benchmarks.torch_mmdit --depth=6 --width=1536 --side=128 --text=333 \
        --context_width=4096 --pooled_width=2048 --batch=2 --dtype=bfloat16 --nounrolled
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.result_files import write_result

# Two frameworks share the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from ladd_jax.models.base import Params, parameter_count
from ladd_jax.models.sd3.diffusers_layout import config_json, layout
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.weights.layout import tensor_shapes
from ladd_jax.weights.transfer import write_tensors

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_DEPTH = flags.DEFINE_integer("depth", 6, "Number of blocks.")
_WIDTH = flags.DEFINE_integer("width", 768, "Width of the blocks.")
_SIDE = flags.DEFINE_integer("side", 64, "Side of the latents.")
_TEXT = flags.DEFINE_integer("text", 77, "Text tokens.")
_CONTEXT_WIDTH = flags.DEFINE_integer("context_width", 1024, "Width of the text tokens.")
_POOLED_WIDTH = flags.DEFINE_integer("pooled_width", 768, "Width of the pooled text.")
_BATCH = flags.DEFINE_integer("batch", 2, "Images in a batch.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of weights and computation."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed runs of each program.")
_COMPILE = flags.DEFINE_bool("compile", True, "Whether to time torch.compile too.")
_UNROLLED = flags.DEFINE_bool("unrolled", True, "Whether to time unrolled blocks too.")

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Allowed norm of a difference over torch's norm; bfloat16 keeps 8 bits, and rounding adds up."""

Run = Callable[[], Any]


def shaken(params: Params, seed: int) -> Params:
    """Adds noise to all parameters: fresh adaLN is zero, which makes every block the identity."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    noisy = [
        leaf + 0.02 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def tensors(params: Params, config: MMDiTConfig) -> dict[str, torch.Tensor]:
    """Parameters, or their gradients, under diffusers' names: float32 on the host."""
    tree = layout(config, params)
    arrays = write_tensors(tree, params, np.float32)
    names = tensor_shapes(tree, params)
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def torch_model(config: MMDiTConfig, params: Params, device: str) -> torch.nn.Module:
    """diffusers' transformer with our parameters."""
    fields = {k: v for k, v in config_json(config, _SIDE.value).items() if not k.startswith("_")}
    with torch.device(device):
        model = diffusers.SD3Transformer2DModel(**fields)
    left = model.load_state_dict(tensors(params, config), strict=False)
    if left.unexpected_keys or left.missing_keys not in ([], ["pos_embed.pos_embed"]):
        raise SystemExit(f"the two networks differ in their tensors: {left}")
    return model.to(getattr(torch, _DTYPE.value)).eval()


def relative(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Norm of all differences (ours, torch's) over the norm of torch's."""
    difference = size = 0.0
    for ours, theirs in pairs:
        ours, theirs = (x.detach().float().cpu() for x in (ours, theirs))
        difference += float((ours - theirs).square().sum())
        size += float(theirs.square().sum())
    return (difference / size) ** 0.5


def main(_: list[str]) -> None:
    """Compares, measures, prints, writes."""
    dtype = jnp.dtype(_DTYPE.value)
    config = MMDiTConfig(
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_heads=_WIDTH.value // 64,
        context_width=_CONTEXT_WIDTH.value,
        pooled_width=_POOLED_WIDTH.value,
        # diffusers makes its table for a base resolution, `sample_size`.
        position_base=_SIDE.value // 2,
        remat="none",
        dtype=dtype,
        param_dtype=dtype,
    )
    b, side = _BATCH.value, _SIDE.value
    model = mmdit(config)
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    params = jax.jit(lambda key: cast(shaken(model.init(key), 1)))(jax.random.PRNGKey(0))
    keys = jax.random.split(jax.random.PRNGKey(2), 4)
    shapes = ((b, side, side, 16), (b, _TEXT.value, config.context_width), (b, config.pooled_width))
    latents, context, pooled = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)
    )
    cond = {"context": context, "pooled": pooled}
    cotangent = jax.random.normal(keys[3], latents.shape, dtype)
    t = jnp.linspace(0.25, 1.0, b)

    def program(unroll: int) -> Run:
        network = mmdit(dataclasses.replace(config, unroll=unroll))

        def gradients(params: Params, *inputs: Any) -> Any:
            v, vjp = jax.vjp(lambda params: network(params, *inputs), params)
            return v, vjp(cotangent.astype(v.dtype))[0]

        compiled = jax.jit(gradients)
        return lambda: jax.block_until_ready(compiled(params, latents, t, cond))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = torch_model(config, params, device)

    def as_torch(x: jax.Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(x.astype(jnp.float32)).copy())
        return tensor.to(device, getattr(torch, _DTYPE.value))

    inputs = {
        "hidden_states": as_torch(latents).permute(0, 3, 1, 2).contiguous(),
        "encoder_hidden_states": as_torch(context),
        "pooled_projections": as_torch(pooled),
        # diffusers casts its sinusoids, but not the time that they are made from.
        "timestep": 1000 * torch.from_numpy(np.array(t)).to(device),
    }
    pullback = as_torch(cotangent).permute(0, 3, 1, 2).contiguous()

    def torch_run(network: Callable[..., Any]) -> Run:
        def run() -> torch.Tensor:
            theirs.zero_grad(set_to_none=True)
            v = network(**inputs, return_dict=False)[0]
            v.backward(pullback)
            if device == "cuda":
                torch.cuda.synchronize()
            return v

        return run

    runs: dict[str, Run] = {"scan": program(1), "eager": torch_run(theirs)}
    if _UNROLLED.value:
        runs["unrolled"] = program(config.depth)
    if _COMPILE.value:
        runs["compile"] = torch_run(torch.compile(theirs))

    v, gradients = runs["scan"]()
    expected = runs["eager"]().permute(0, 2, 3, 1)
    ours = tensors(gradients, config)
    del gradients
    theirs_by_name = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    errors = {
        "velocity": relative([(torch.from_numpy(np.array(v)), expected)]),
        "gradients": relative((ours[name], grad) for name, grad in theirs_by_name.items()),
    }
    del ours, theirs_by_name
    tolerance = TOLERANCE[_DTYPE.value]
    if max(errors.values()) > tolerance:
        raise SystemExit(f"the networks differ: {errors}, more than {tolerance:.0e}")

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-2, _REPEATS.value):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "time_over_eager": medians["scan"] / medians["eager"],
        "time_over_compile": medians["scan"] / medians["compile"] if _COMPILE.value else None,
        "scan_over_unrolled": medians["scan"] / medians["unrolled"] if _UNROLLED.value else None,
        "seconds": {
            name: {"median": medians[name], "min": min(values), "max": max(values)}
            for name, values in seconds.items()
        },
        "relative_difference": errors,
        "tolerance": tolerance,
        "setting": {
            "depth": config.depth,
            "width": config.width,
            "latents": list(shapes[0]),
            "context": list(shapes[1]),
            "dtype": _DTYPE.value,
            "parameters": parameter_count(model),
            "device": jax.devices()[0].device_kind,
            "threads": torch.get_num_threads(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
    for name, values in seconds.items():
        print(f"{name:>9}: {medians[name]:8.4f} s ({min(values):.4f} to {max(values):.4f})")
    print(
        f"scan / eager {result['time_over_eager']:.3f}; differences: velocity "
        f"{errors['velocity']:.1e}, gradients {errors['gradients']:.1e}"
    )
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

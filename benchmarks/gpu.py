"""`python -m benchmarks.gpu [--json=FILE]`: the full LADD step of SD3-Medium at 1024^2 on one GPU.

Student and teacher have 2B random parameters each. Computation is in bfloat16; the student's
parameters and Adam moments are float32, the teacher is bfloat16, and every block has a head.
Measures images/s, TFLOP/s, MFU and peak memory for each batch size and remat policy. Before that it
compares cuDNN's attention with XLA's, at the lengths of every bucket of `configs/sd3_turbo.py`.

Model FLOPs of an image are those of 6 forward passes: student 3 (forward, and backward twice as
much), teacher on fakes 2 (its weights need no gradient), teacher on real samples 1. Heads and
recomputation are not counted. Hardware FLOPs are all matrix products of the step as it is traced.

Each setting runs in its own process, so that its peak memory is its own and one that does not fit
does not end the others. The result is written after each.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.flops import matrix_flops
from benchmarks.result_files import write_result
from ladd_jax.data.buckets import bucket_table
from ladd_jax.models.attention import cudnn
from ladd_jax.models.base import Model, Params, parameter_count
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.objectives.base import Batch, TrainState
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.chips import chip_of
from ladd_jax.parallel.compiler_options import compiler_options
from ladd_jax.training.optimizers import Optimizer

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_BATCHES = flags.DEFINE_list("batches", ["4", "8", "16"], "Batch sizes.")
_REMATS = flags.DEFINE_list(
    "remats",
    ["full", "attention", "dots", "dots_attention"],
    "Remat policies of student and teacher; STUDENT/TEACHER gives each its own.",
)
_STEPS = flags.DEFINE_integer("steps", 7, "Timed steps.")
_DEPTH = flags.DEFINE_integer("depth", 24, "Blocks of teacher and student.")
_WIDTH = flags.DEFINE_integer("width", 1536, "Width of the blocks.")
_SIDE = flags.DEFINE_integer("side", 128, "Side of the latents.")
_TEXT = flags.DEFINE_integer("text", 333, "Text tokens.")
_UNROLL = flags.DEFINE_integer("unroll", 1, "Blocks in one iteration of the scan.")
_HEAD_DTYPE = flags.DEFINE_enum(
    "head_dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the heads."
)
_R1_INTERVAL = flags.DEFINE_integer("r1_interval", 1, "Steps between gradient penalties.")
_ATTENTION_BATCH = flags.DEFINE_integer("attention_batch", 2, "Batch of attention; 0 skips it.")
_PEAK = flags.DEFINE_float("peak", 0.0, "Peak of an unlisted device, in dense bfloat16 TFLOP/s.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for traces; also splits time by kernel.")
_MINUTES = flags.DEFINE_float("minutes", 5.0, "Time limit of one setting.")
_SETTING = flags.DEFINE_string("setting", None, "Measure this alone: `attention` or BATCH:REMAT.")

# What kernels do, by words in their names; the first that fits counts.
KINDS = {
    "attention": ("sdpa", "flash", "fmha", "cudnn_generated"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "copies": ("memcpy", "memset", "copy", "transpose"),
}

WARM_UP = 2

TOLERANCE = 2e-2
"""Allowed difference of cuDNN's and XLA's attention over the largest value; bfloat16 has 8 bits."""


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device, or `--peak` if it is given; None for an unlisted device."""
    if _PEAK.value:
        return _PEAK.value * 1e12
    chip = chip_of(device)
    return chip.bf16_flops if chip else None


def networks(remat: str) -> tuple[LADD, Model, MMDiTConfig]:
    """The objective, the teacher's model and the student's architecture."""
    student_remat, _, teacher_remat = remat.partition("/")
    config = MMDiTConfig(
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_heads=_WIDTH.value // 64,
        remat=student_remat,
        unroll=_UNROLL.value,
        dtype=jnp.bfloat16,
    )
    teacher = mmdit(
        dataclasses.replace(config, param_dtype=jnp.bfloat16, remat=teacher_remat or student_remat)
    )
    head_config = HeadConfig(config.width, config.pooled_width, dtype=jnp.dtype(_HEAD_DTYPE.value))
    objective = LADD(
        student=mmdit(config),
        critic=FeatureCritic(teacher, head(head_config), head_stack(head_config, config.depth)),
        optimizer=Optimizer(1e-5, beta1=0.0, clip_norm=1.0),
        heads_optimizer=Optimizer(1e-4, beta1=0.0),
        r1_interval=_R1_INTERVAL.value,
    )
    return objective, teacher, config


def shake(params: Params, key: jax.Array) -> Params:
    """Adds noise to all parameters: fresh adaLN is zero, which makes every block the identity."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + 0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and most of some seconds."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def measure_step(batch_size: int, remat: str) -> dict[str, Any]:
    """Measures one setting: compiles the step, makes weights on the device, times it."""
    objective, teacher_model, config = networks(remat)
    shapes = (
        (batch_size, _SIDE.value, _SIDE.value, config.in_channels),
        (batch_size, _TEXT.value, config.context_width),
        (batch_size, config.pooled_width),
    )

    def init(key: jax.Array) -> tuple[TrainState, dict[str, Params], Batch]:
        keys = jax.random.split(key, 3 + len(shapes))
        teacher = shake(teacher_model.init(keys[0]), keys[1])
        latents, context, pooled = map(jax.random.normal, keys[3:], shapes)
        batch = {"latents": latents, "cond": {"context": context, "pooled": pooled}}
        return objective.init(keys[2], teacher), {"teacher": teacher}, batch

    key = jax.random.PRNGKey(0)
    state_shape, frozen_shape, batch_shape = jax.eval_shape(init, key)
    forward = matrix_flops(
        objective.student.__call__,
        state_shape.params,
        batch_shape["latents"],
        jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        batch_shape["cond"],
    )
    hardware = matrix_flops(objective.step, state_shape, frozen_shape, batch_shape)
    start = time.perf_counter()
    options = compiler_options(jax.local_devices()[0].device_kind)
    step = jax.jit(objective.step, donate_argnums=0, compiler_options=options)
    program = step.lower(state_shape, frozen_shape, batch_shape).compile()
    compile_s = time.perf_counter() - start
    planned = program.memory_analysis()

    state, frozen, batch = jax.block_until_ready(jax.jit(init)(key))
    seconds = []
    for step in range(WARM_UP + _STEPS.value):
        start = time.perf_counter()
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    losses = {name: float(metrics[name]) for name in ("loss/generator", "loss/discriminator")}
    if not all(map(math.isfinite, losses.values())):
        raise SystemExit(f"the losses are not finite: {losses}")

    device = jax.local_devices()[0]
    peak = peak_flops(device)
    median = statistics.median(seconds)
    memory = device.memory_stats() or {}
    result = {
        "batch": batch_size,
        "remat": remat,
        "images_per_second": batch_size / median,
        "seconds": summary(seconds),
        "model_tflops_per_second": 6 * forward / median / 1e12,
        "hardware_tflops_per_second": hardware / median / 1e12,
        "mfu": peak and 6 * forward / median / peak,
        "hardware_utilisation": peak and hardware / median / peak,
        "model_flops": 6 * forward,
        "hardware_flops": hardware,
        "hardware_over_model_flops": hardware / (6 * forward),
        "memory_gib": {
            "peak": memory.get("peak_bytes_in_use", 0) / 2**30,
            "limit": memory.get("bytes_limit", 0) / 2**30,
            "planned_arguments": planned.argument_size_in_bytes / 2**30,
            "planned_temporaries": planned.temp_size_in_bytes / 2**30,
        },
        "compile_seconds": compile_s,
        "parameters": parameter_count(objective.student),
        **losses,
    }
    if _PROFILE.value:
        folder = Path(_PROFILE.value) / f"{batch_size}-{remat.replace('/', '-')}"

        def one() -> None:
            jax.block_until_ready(program(state, frozen, batch))

        result["profile"] = profile(one, folder)
    return result


def profile(run: Callable[[], None], folder: Path) -> dict[str, Any]:
    """Traces a run; milliseconds by kind of kernel, and of its longest kernels."""
    with jax.profiler.trace(str(folder)):
        run()
    kinds: dict[str, float] = collections.defaultdict(float)
    kernels: dict[str, float] = collections.defaultdict(float)
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    name = event.name.lower()
                    words = (k for k, v in KINDS.items() if any(word in name for word in v))
                    kinds[next(words, "element-wise and reductions")] += event.duration_ns / 1e6
                    kernels[event.name[:120]] += event.duration_ns / 1e6
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:40]
    return {"milliseconds": dict(kinds), "longest_kernels": dict(longest)}


def attention_program(attend: Callable[..., jax.Array]) -> Any:
    """A jitted function of `q, k, v, cotangent` that gives attention and its gradients."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
        out, vjp = jax.vjp(attend, q, k, v)
        return out, vjp(cotangent)

    return jax.jit(run)


def measure_attention() -> list[dict[str, Any]]:
    """Forward and backward by cuDNN and by XLA in turn, for the lengths of every bucket."""
    heads, width = _WIDTH.value // 64, 64
    side = 8 * _SIDE.value
    buckets = bucket_table(side * side, 64 if side >= 512 else 16)
    images = sorted({bucket.height * bucket.width // 4 for bucket in buckets})
    square = (_SIDE.value // 2) ** 2
    # Joint attention; the last block, where text has no queries; then two even lengths, without the
    # mask that hides an odd length's padding: image tokens alone, and the next multiple of 128.
    joint = square + _TEXT.value
    lengths = [(n + _TEXT.value,) * 2 for n in images]
    lengths += [(square, joint), (square, square), (-(-joint // 128) * 128,) * 2]
    xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    programs = {"cudnn": attention_program(cudnn), "xla": attention_program(xla)}
    results = []
    for n, m in lengths:
        b = _ATTENTION_BATCH.value
        keys = jax.random.split(jax.random.PRNGKey(0), 4)
        q, k, v, cotangent = (
            jax.random.normal(key, (b, length, heads, width), jnp.bfloat16)
            for key, length in zip(keys, (n, m, m, n), strict=True)
        )

        outputs = {name: run(q, k, v, cotangent) for name, run in programs.items()}
        pairs = zip(*map(jax.tree.leaves, outputs.values()), strict=True)
        differences = [
            float(jnp.max(jnp.abs((x - y).astype(jnp.float32))) / jnp.max(jnp.abs(y)))
            for x, y in pairs
        ]
        if not all(value < TOLERANCE for value in differences):
            raise SystemExit(f"attention differs by {differences}, more than {TOLERANCE}")
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(_STEPS.value):
            for name, run in programs.items():
                start = time.perf_counter()
                for _ in range(5):
                    out = run(q, k, v, cotangent)
                jax.block_until_ready(out)
                seconds[name].append((time.perf_counter() - start) / 5)
        flops = 2 * 7 * b * heads * width * n * m
        results.append(
            {
                "shape": {"batch": b, "queries": n, "keys": m, "heads": heads, "width": width},
                "seconds": {name: summary(values) for name, values in seconds.items()},
                # Two products forward and, as in flash attention, five backward.
                "tflops_per_second": {
                    name: flops / statistics.median(values) / 1e12
                    for name, values in seconds.items()
                },
                "difference_over_largest": {
                    name: value
                    for name, value in zip(("out", "dq", "dk", "dv"), differences, strict=True)
                },
            }
        )
    return results


def measure(setting: str) -> dict[str, Any]:
    """Measures a setting in this process; the result says if it does not fit into memory."""
    device = jax.local_devices()[0]
    about = {"device": device.device_kind, "jax": jax.__version__}
    batch, _, remat = setting.partition(":")
    try:
        if setting == "attention":
            return about | {"attention": measure_attention()}
        return about | {"step": measure_step(int(batch), remat)}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        failure = {"out_of_memory": str(error).splitlines()[0][:300]}
        if setting == "attention":
            return about | {"attention": [failure]}
        return about | {"step": {"batch": int(batch), "remat": remat} | failure}


def settings() -> list[str]:
    """The settings to measure, smaller batches first."""
    found = ["attention"] if _ATTENTION_BATCH.value else []
    batches = sorted(map(int, filter(None, _BATCHES.value)))
    return found + [f"{batch}:{remat}" for batch in batches for remat in _REMATS.value]


def describe(step: dict[str, Any]) -> str:
    """A line about a step."""
    name = f"batch {step['batch']:3d}, remat {step['remat']:<15}"
    if "seconds" not in step:
        return f"{name} {step.get('out_of_memory') or step['error']}"
    mfu = "" if step["mfu"] is None else f"MFU {step['mfu']:.1%}, "
    return (
        f"{name} {step['images_per_second']:6.2f} images/s, "
        f"{step['model_tflops_per_second']:6.1f} model TFLOP/s, {mfu}"
        f"{step['hardware_tflops_per_second']:6.1f} hardware TFLOP/s, "
        f"peak {step['memory_gib']['peak']:.1f} GiB, "
        f"compiled in {step['compile_seconds']:.0f} s"
    )


def run_setting(setting: str) -> dict[str, Any]:
    """Measures a setting in its own process."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], f"--setting={setting}"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=60 * _MINUTES.value
        )
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {_MINUTES.value:g} minutes"}
    if done.returncode:
        return {"error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    if _SETTING.value:
        print(json.dumps(measure(_SETTING.value)))
        return
    result: dict[str, Any] = {
        "steps": [],
        "attention": [],
        "setting": {
            "depth": _DEPTH.value,
            "width": _WIDTH.value,
            "latent_side": _SIDE.value,
            "text_tokens": _TEXT.value,
            "unroll": _UNROLL.value,
            "head_dtype": _HEAD_DTYPE.value,
            "r1_interval": _R1_INTERVAL.value,
            "timed_steps": _STEPS.value,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
        "model_flops": "6 x the matrix products of one forward pass of the transformer",
        "hardware_flops": "matrix products of the whole step: recomputation and heads too",
    }
    full: set[str] = set()
    for setting in settings():
        batch, _, remat = setting.partition(":")
        if remat in full:
            continue
        found = run_setting(setting)
        result["setting"] |= {name: found.pop(name) for name in ("device", "jax") if name in found}
        if setting == "attention":
            result["attention"] = found.get("attention", [found])
            print(json.dumps(result["attention"]), flush=True)
        else:
            step = found.get("step") or {"batch": int(batch), "remat": remat} | found
            if "out_of_memory" in step:
                # Larger batches follow; they will not fit either.
                full.add(remat)
            result["steps"].append(step)
            print(describe(step), flush=True)
        write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

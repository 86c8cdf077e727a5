"""`python -m benchmarks.gpu_levers [--json=FILE]`: what a GPU's step gains by one change at a time.

Measures the whole step of `benchmarks.gpu`, whose flags apply here too, as it is and with one lever
pulled: first levers that undo what was found to help, then levers that are not in the code. On a
GPU, all are timed in one process from the same state, the step as it is both first and last.
Attention without a mask is also compared with attention in float32:

    python -m benchmarks.gpu_levers --batches=8 --steps=4 --json=gpu_levers.json

`--compile_only=gpu:141` compiles for a GPU that is not here and times nothing. It counts the FLOPs
of each program's matrix products, the bytes that it moves, by purpose, and its temporaries. Without
a GPU on which kernels can be tried, all matrix products are cuBLAS's.

In the file, a run replaces an earlier one with the same setting.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax._src.lax.control_flow import loops
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import gpu
from benchmarks.flops import matrix_flops
from benchmarks.result_files import write_result
from ladd_jax.models import attention
from ladd_jax.models.layers import layer_norm
from ladd_jax.models.residuals import leave_out, put_back
from ladd_jax.models.sd3 import transformer
from ladd_jax.objectives.base import Batch, TrainState
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.compiler_options import compiler_options
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.hlo_cost import instruction_costs
from ladd_jax.planning.topology import gpu_devices, parse_gpu

FLAGS = flags.FLAGS
_COMPILE_ONLY = flags.DEFINE_string("compile_only", None, "A GPU to compile for, such as gpu:141.")
_LEVERS = flags.DEFINE_list("levers", [], "Levers to pull; default: all.")
_REMAT = flags.DEFINE_string("remat", "dots_attention", "Remat policy of student and teacher.")
_THREADS = flags.DEFINE_integer("threads", 8, "Programs compiled at once, on a GPU.")

# Rates of an H200: bytes a second of a copy, counting reads and writes; FLOP/s of cuDNN's
# attention, forward and backward with heads of 64 (benchmarks/results/gpu_attention.json); FLOP/s
# of cuBLAS.
MEASURED = {"bytes": 4.3e12, "attention": 400e12, "matrix products": 775e12}

_MOVES = {"parameter", "constant", "broadcast", "bitcast", "tuple",
          "dynamic-slice", "dynamic-update-slice", "copy"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lever:
    """One change.

    Attributes:
      options: options of XLA in addition to those of `compiler_options`.
      fields: changed fields of the objective.
      unroll: number of blocks in one iteration of a scan.
      swaps: triples of a module, a name in it, and what the name stands for instead.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    unroll: int = 1
    swaps: tuple[tuple[Any, str, Any], ...] = ()

    @contextlib.contextmanager
    def pulled(self) -> Iterator[None]:
        """A context in which everything that is built and traced has the change."""
        with contextlib.ExitStack() as stack:
            for where, name, value in self.swaps:
                stack.callback(setattr, where, name, getattr(where, name))
                setattr(where, name, value)
            stack.callback(FLAGS.__setattr__, "unroll", FLAGS.unroll)
            FLAGS.unroll = self.unroll
            yield


@jax.custom_jvp
def gelu_by_tanh(x: jax.Array) -> jax.Array:
    """`layers.gelu_tanh` as its paper writes it."""
    return _gelu_by_tanh(x)[0]


def _gelu_by_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = x.astype(jnp.float32)
    slope, cubic = (2 / jnp.pi) ** 0.5, 0.044715
    tanh = jnp.tanh(slope * (y + cubic * y**3))
    gate = 0.5 * (1 + tanh)
    derivative = gate + 0.5 * y * (1 - tanh * tanh) * slope * (1 + 3 * cubic * y * y)
    return (y * gate).astype(x.dtype), derivative.astype(x.dtype)


@gelu_by_tanh.defjvp
def _gelu_by_tanh_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    value, derivative = _gelu_by_tanh(*primals)
    return value, derivative * tangents[0]


def norm_by_autodiff(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """`layers.modulated_norm`, differentiated by JAX."""
    return layer_norm(x) * (1 + scale[:, None]) + shift[:, None]


_masked = attention._cudnn
_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


def unmasked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention._cudnn` for an odd length, without the mask that makes cuDNN slower.

    The first key is given twice, the second time with a value of zero. Its only effect is a sum of
    exponentials that is too large, by less than the sum itself; this is corrected afterwards.
    """
    return _corrected(q, k, v) if k.shape[1] % 2 else _masked(q, k, v)


def _even(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


@jax.custom_vjp
def _corrected(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _corrected_forward(q, k, v)[0]


def _corrected_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    n, m = q.shape[1], k.shape[1]
    even, twice = _even(q), jnp.concatenate([k, k[:, :1]], axis=1)
    out, vjp = jax.vjp(_cudnn, even, twice, _even(v))
    # The only float32 array holds the logarithms of the sums: [B, K, N].
    (normalizer,) = (leaf for leaf in jax.tree.leaves(vjp) if leaf.dtype == jnp.float32)
    others = leave_out(vjp, [out, normalizer, twice])
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    logit = product("bnkd,bkd->bkn", even, k[:, 0]) / q.shape[-1] ** 0.5
    share = jnp.exp(logit - normalizer)
    right = out.astype(jnp.float32) / jnp.swapaxes(1 - share, 1, 2)[..., None]
    kept = [right.astype(out.dtype), normalizer + jnp.log1p(-share)]
    kept = [checkpoint_name(array, attention.ATTENDED) for array in kept]

    def backward(kept: list[jax.Array], k: jax.Array, others: Any, bar: Any) -> Any:
        # With the corrected output and normalizer, and zeros for the second key, which then adds
        # nothing to the gradient of q, cuDNN's gradient is exact except for that key and its value,
        # whose gradients are cut off.
        q_bar, k_bar, v_bar = put_back(others, [*kept, _even(k)])(_even(bar))
        return q_bar[:, :n], k_bar[:, :m], v_bar[:, :m]

    return kept[0][:, :n], jax.tree_util.Partial(backward, kept, k, others)


_corrected.defvjp(_corrected_forward, lambda backward, cotangent: backward(cotangent))


def _named(primitive: Any, *_: Any, **params: Any) -> bool:
    return primitive.name == "name" and params["name"] == attention.ATTENDED


_POLICIES = transformer.REMAT_POLICIES | {
    "attention": _named,
    "dots_attention": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _named
    ),
}


def not_zeroed(prefix: tuple[int, ...], _: Any, aval: Any) -> jax.Array:
    """A scan's stacks as uninitialised memory; JAX itself fills them with zeros."""
    return jax.lax.empty((*prefix, *aval.shape), aval.dtype)


_STACKED = {"xla_gpu_enable_dynamic_slice_fusion": True}
_GELU = (transformer, "gelu_tanh", gelu_by_tanh)
_NORM = (transformer, "modulated_norm", norm_by_autodiff)
_UNMASKED = ((attention, "_cudnn", unmasked), (transformer, "REMAT_POLICIES", _POLICIES))
_EMPTY = (loops, "_empty_array", not_zeroed)

LEVERS = {
    "today": Lever(),
    "none of what helps": Lever(_STACKED, swaps=(_GELU, _NORM)),
    "products written into stacks": Lever(_STACKED),
    "GELU by tanh": Lever(swaps=(_GELU,)),
    "LayerNorm by autodiff": Lever(swaps=(_NORM,)),
    "attention without a mask": Lever(swaps=_UNMASKED),
    "stacks not zeroed": Lever(swaps=(_EMPTY,)),
    "both of these": Lever(swaps=(*_UNMASKED, _EMPTY)),
    "R1 every 16th step": Lever(fields={"r1_interval": 16}),
    "no R1": Lever(fields={"r1_gamma": 0.0}),
    "two blocks in a turn": Lever(unroll=2),
    "latency hiding": Lever({"xla_gpu_enable_latency_hiding_scheduler": True}),
    "no Triton products": Lever({"xla_gpu_enable_triton_gemm": False}),
}


def build(lever: Lever) -> tuple[LADD, Any, Any]:
    """What `gpu.networks` returns, with the lever's fields."""
    objective, teacher, config = gpu.networks(_REMAT.value)
    return dataclasses.replace(objective, **lever.fields), teacher, config


def start(key: jax.Array, batch_size: int) -> tuple[TrainState, dict[str, Any], Batch]:
    """A random state, frozen networks and a batch."""
    objective, teacher_model, config = build(Lever())
    keys = jax.random.split(key, 6)
    teacher = gpu.shake(teacher_model.init(keys[0]), keys[1])
    shapes = (
        (batch_size, FLAGS.side, FLAGS.side, config.in_channels),
        (batch_size, FLAGS.text, config.context_width),
        (batch_size, config.pooled_width),
    )
    latents, context, pooled = map(jax.random.normal, keys[3:], shapes)
    batch = {"latents": latents, "cond": {"context": context, "pooled": pooled}}
    return objective.init(keys[2], teacher), {"teacher": teacher}, batch


def lowered(lever: Lever, arguments: Any) -> Any:
    """The step with the lever pulled, lowered but not compiled."""
    with lever.pulled():
        objective, *_ = build(lever)
        return jax.jit(objective.step, donate_argnums=0).lower(*arguments)


def traffic(text: str) -> dict[str, Any]:
    """FLOPs and bytes of a program by purpose, and seconds at `MEASURED` rates."""
    flops: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for item in instruction_costs(text, {"data": 1, "fsdp": 1, "tensor": 1}):
        if "fmhaSoftmax" in item.instruction.attributes:
            kind = "attention"
        elif item.cost.flops:
            kind = "matrix products"
        elif item.fused and item.fused <= _MOVES:
            kind = "into and out of stacks" if "parameter" in item.fused else "zeros"
        else:
            kind = "element-wise and reductions"
        flops[kind] += item.cost.flops
        moved[kind] += item.cost.hbm_bytes
    seconds = {kind: amount / MEASURED["bytes"] for kind, amount in moved.items()}
    seconds |= {kind: amount / MEASURED[kind] for kind, amount in flops.items() if amount}
    return {
        "tflop": {kind: amount / 1e12 for kind, amount in flops.items() if amount},
        "gib": {kind: amount / 2**30 for kind, amount in moved.items()},
        "seconds_at_measured_rates": seconds | {"sum": sum(seconds.values())},
    }


def compiled_only(lever: Lever, batch_size: int) -> dict[str, Any]:
    """Compiles the step for a described GPU, and counts what the program consists of."""
    chip, count = parse_gpu(_COMPILE_ONLY.value)
    mesh = make_mesh({"data": 1}, gpu_devices(chip, count))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        key = jax.ShapeDtypeStruct((2,), jnp.uint32)
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(functools.partial(start, batch_size=batch_size), key),
        )
        step = lowered(lever, arguments)
        begin = time.perf_counter()
        options = compiler_options(mesh.devices.flat[0].device_kind) | lever.options
        options |= {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
        program = step.compile(compiler_options=options)
    return {
        **traffic(program.as_text()),
        "temporaries_gib": program.memory_analysis().temp_size_in_bytes / 2**30,
        "compile_seconds": time.perf_counter() - begin,
    }


def timed(program: Any, make: Any, key: jax.Array, batch_size: int) -> dict[str, Any]:
    """Seconds of a step, and the metrics of the first one."""
    state, frozen, batch = make(key)
    state, metrics = program(state, frozen, batch)
    first = {
        name: float(metrics[name])
        for name in ("loss/generator", "gradient_norm/student", "gradient_norm/heads")
    }
    seconds = []
    for _ in range(FLAGS.steps):
        begin = time.perf_counter()
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    row = {
        "seconds": gpu.summary(seconds),
        "images_per_second": batch_size / median,
        "first": first,
    }
    if FLAGS.profile:
        folder = Path(FLAGS.profile) / str(time.time_ns())
        row["profile"] = gpu.profile(
            lambda: jax.block_until_ready(program(state, frozen, batch)) and None, folder
        )
    return row


def measure(names: list[str], batch_size: int, add: Any) -> None:
    """Adds the rows of a batch size; all programs are compiled before any is timed."""
    key = jax.random.PRNGKey(0)
    begin = functools.partial(start, batch_size=batch_size)
    state, frozen, batch = jax.eval_shape(begin, key)
    objective, _, config = build(Lever())
    t = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    flops = 6 * matrix_flops(
        objective.student.__call__, state.params, batch["latents"], t, batch["cond"]
    )
    device = jax.local_devices()[0]
    peak = gpu.peak_flops(device)
    options = compiler_options(device.device_kind)

    def compiled(step: Any, lever: Lever) -> Any:
        return step.compile(compiler_options=options | lever.options)

    pool = concurrent.futures.ThreadPoolExecutor(_THREADS.value)
    # XLA chooses kernels for one program at a time; the rest of compilation runs on the host.
    programs = {
        name: pool.submit(compiled, lowered(LEVERS[name], (state, frozen, batch)), LEVERS[name])
        for name in names
    }
    make = jax.jit(begin).lower(key).compile()
    concurrent.futures.wait(programs.values())
    for name in [*names, names[0]]:
        row: dict[str, Any] = {"lever": name, "batch": batch_size, "remat": config.remat}
        try:
            row |= timed(programs[name].result(), make, key, batch_size)
            row["mfu"] = peak and flops / row["seconds"]["median"] / peak
        except jax.errors.JaxRuntimeError as error:
            row["error"] = str(error).splitlines()[0][:300]
        add(row)


def attention_errors() -> dict[str, Any]:
    """Relative errors of attention's output and gradients against float32, at SD3's odd length.

    They are given for usual logits, and for logits that are all far below 0.
    """
    n = (FLAGS.side // 2) ** 2 + FLAGS.text
    keys = jax.random.split(jax.random.PRNGKey(1), 4)
    shape = (1, n, 4, 64)
    q, k, v, cotangent = (2 * jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    along = jnp.full(64, 9 / 8, jnp.bfloat16)
    exact = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    found = {}
    for which, arguments in {"usual": (q, k, v), "low": (q + along, k - along, v)}.items():
        wide = [x.astype(jnp.float32) for x in (*arguments, cotangent)]
        with jax.default_matmul_precision("highest"):
            right = jax.tree.leaves(gpu.attention_program(exact)(*wide))
        for name, attend in {"masked": attention.cudnn, "unmasked": unmasked}.items():
            given = jax.tree.leaves(gpu.attention_program(attend)(*arguments, cotangent))
            found[f"{which}, {name}"] = [
                float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
                for a, b in zip(given, right, strict=True)
            ]
    return found


def main(_: list[str]) -> None:
    """Compiles or measures, and prints and writes each row."""
    names = _LEVERS.value or list(LEVERS)
    setting = {
        "device": _COMPILE_ONLY.value or jax.local_devices()[0].device_kind,
        "compiled_only": bool(_COMPILE_ONLY.value),
        "jax": jax.__version__,
        "remat": _REMAT.value,
        **{name: getattr(FLAGS, name) for name in ("depth", "width", "side", "text", "batches")},
    }
    result: dict[str, Any] = {"setting": setting, "rows": []}
    file = Path(FLAGS.json) if FLAGS.json else None
    others = json.loads(file.read_text())["runs"] if file and file.exists() else []
    others = [run for run in others if run["setting"] != setting]

    def write() -> None:
        write_result(FLAGS.json, {"runs": [*others, result]})

    def add(row: dict[str, Any]) -> None:
        result["rows"].append(row)
        print(json.dumps(row | {"profile": "..."} if "profile" in row else row), flush=True)
        write()

    for batch_size in map(int, FLAGS.batches):
        if not _COMPILE_ONLY.value:
            measure(names, batch_size, add)
            continue
        for name in names:
            row = {"lever": name, "batch": batch_size}
            add(row | compiled_only(LEVERS[name], batch_size))
    if not _COMPILE_ONLY.value and jax.default_backend() == "gpu":
        result["attention_errors"] = attention_errors()
        print(json.dumps(result["attention_errors"]))
        write()


if __name__ == "__main__":
    app.run(main)

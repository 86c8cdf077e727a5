"""`python -m benchmarks.int8`: how far an int8 teacher turns the student's gradient.

Runs a step of distillation on random networks, with one set of teacher weights stored in float32,
in bfloat16 and in int8. All computation is in float32 and the heads are the same, so that only what
is stored differs. Prints, and writes as JSON, the gradient's cosine, norm and error against
float32, and the teacher's bytes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.gradients import recording, shaken
from benchmarks.result_files import write_result
from ladd_jax.models.base import Params
from ladd_jax.models.heads import HeadConfig
from ladd_jax.models.quantized import quantize_params
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.parallel.mesh import make_mesh

_DEPTH = flags.DEFINE_integer("depth", 4, "Blocks of teacher and student.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of teacher and student.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Weights and batches to draw.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/int8.json", "Where to write the result.")

_BATCH, _SIDE, _TOKENS, _CONTEXT, _POOLED, _CHANNELS = 8, 16, 24, 64, 64, 16


def _bytes(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main(_: list[str]) -> None:
    """Measures and prints."""
    config = MMDiTConfig(
        depth=_DEPTH.value, width=_WIDTH.value, num_heads=_WIDTH.value // 64, qk_norm=True,
        in_channels=_CHANNELS, out_channels=_CHANNELS, context_width=_CONTEXT,
        pooled_width=_POOLED, remat="none",
    )  # fmt: skip
    half = dataclasses.replace(config, param_dtype=jnp.bfloat16)
    networks = {
        "float32": config,
        "bfloat16": half,
        "int8": dataclasses.replace(half, quantized=True),
    }
    heads = HeadConfig(config.width, _POOLED, channels=32)
    student = mmdit(config)
    mesh = make_mesh({}, jax.devices()[:1])
    teachers = {name: mmdit(network) for name, network in networks.items()}
    programs = {}
    for name, network in teachers.items():
        objective = recording(student, network, heads, config.depth)
        programs[name] = objective, jax.jit(objective.step)

    def frozen(name: str, params: Params) -> Params:
        if name == "int8":
            return quantize_params(teachers[name], params, mesh)
        return jax.tree.map(lambda leaf: leaf.astype(networks[name].param_dtype), params)

    measured: dict[str, dict[str, list[float]]] = {
        name: {"cosine": [], "relative_norm": [], "relative_error": []} for name in networks
    }
    sizes: dict[str, int] = {}
    for seed in range(_SEEDS.value):
        keys = jax.random.split(jax.random.PRNGKey(seed), 7)
        teacher = shaken(student.init(keys[0]), keys[1])
        shapes = (
            (_BATCH, _SIDE, _SIDE, _CHANNELS), (_BATCH, _TOKENS, _CONTEXT), (_BATCH, _POOLED)
        )  # fmt: skip
        latents, context, pooled = map(jax.random.normal, keys[2:5], shapes)
        batch = {"latents": latents, "cond": {"context": context, "pooled": pooled}}
        # A student that has moved away from its teacher.
        start = shaken(teacher, keys[5])
        gradients: dict[str, Any] = {}
        for name, (objective, step) in programs.items():
            params = frozen(name, teacher)
            sizes[name] = _bytes(params)
            after, _ = step(objective.init(keys[6], start), {"teacher": params}, batch)
            leaves = jax.tree.leaves(after.optimizer[0].trace)
            gradients[name] = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)
        whole = gradients["float32"]
        for name, gradient in gradients.items():
            norm = np.linalg.norm(gradient)
            found = measured[name]
            found["cosine"].append(float(gradient @ whole / norm / np.linalg.norm(whole)))
            found["relative_norm"].append(float(norm / np.linalg.norm(whole)))
            error = np.linalg.norm(gradient - whole) / np.linalg.norm(whole)
            found["relative_error"].append(float(error))

    print(f"{'teacher':>9} {'MB':>7} {'cosine':>9} {'norm':>7} {'error':>7}")
    for name, found in measured.items():
        mean = {key: np.mean(values) for key, values in found.items()}
        print(
            f"{name:>9} {sizes[name] / 1e6:7.1f} {mean['cosine']:9.6f} "
            f"{mean['relative_norm']:7.4f} {mean['relative_error']:7.4f}"
        )
    result = {
        "setting": {
            "depth": config.depth, "width": config.width, "batch": _BATCH, "side": _SIDE,
            "seeds": _SEEDS.value, "device": jax.devices()[0].device_kind,
        },
        "teachers": {name: {"bytes": sizes[name], **found} for name, found in measured.items()},
    }  # fmt: skip
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

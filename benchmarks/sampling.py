r"""`python -m benchmarks.sampling [--json=FILE]`: the student's 4 steps against the generator's 50.

Times sampling from the embedded prompt to the latent, as `sample` and `synthesize` do it: the
student by the consistency sampler without guidance, the guided data generator by Euler with two
passes a step. One random network plays both, since they share their architecture. They are timed
alternately in one process.

If passes through the network were all that counts, the ratio would be 25: 50 x 2 over 4. For
SD3-Medium at 1024^2, on a GPU:

    python -m benchmarks.sampling --depth=24 --width=1536 --side=128 --text=333 \
        --context_width=4096 --pooled_width=2048 --dtype=bfloat16
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.result_files import write_result
from ladd_jax.config.fields import base_config
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.models.base import parameter_count
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.parallel.mesh import make_mesh

_JSON = flags.DEFINE_string("json", None, "Where to write the result.")
_DEPTH = flags.DEFINE_integer("depth", 6, "Number of blocks.")
_WIDTH = flags.DEFINE_integer("width", 384, "Width of the blocks.")
_SIDE = flags.DEFINE_integer("side", 32, "Side of the latents.")
_TEXT = flags.DEFINE_integer("text", 77, "Text tokens.")
_CONTEXT_WIDTH = flags.DEFINE_integer("context_width", 1024, "Width of the text tokens.")
_POOLED_WIDTH = flags.DEFINE_integer("pooled_width", 768, "Width of the pooled text.")
_BATCH = flags.DEFINE_integer("batch", 2, "Images in a batch.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of computation.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed batches of each model.")


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    dtype = jnp.dtype(_DTYPE.value)
    config = MMDiTConfig(
        depth=_DEPTH.value,
        width=_WIDTH.value,
        num_heads=_WIDTH.value // 64,
        context_width=_CONTEXT_WIDTH.value,
        pooled_width=_POOLED_WIDTH.value,
        remat="none",
        dtype=dtype,
        param_dtype=dtype,
    )
    model = mmdit(config)
    params = jax.jit(model.init)(jax.random.PRNGKey(0))
    batch, shape = _BATCH.value, (_SIDE.value, _SIDE.value, config.in_channels)
    rng = np.random.default_rng(0)
    shapes = {"context": (_TEXT.value, config.context_width), "pooled": (config.pooled_width,)}
    drawn = {
        name: rng.standard_normal((batch + 1, *size), dtype=np.float32)
        for name, size in shapes.items()
    }
    cond = {name: array[:-1] for name, array in drawn.items()}
    null = {name: array[-1] for name, array in drawn.items()}
    generate = Sampler(model, null, make_mesh({"data": 1}, jax.devices()[:1]), batch)
    base = base_config()
    ways = {
        "teacher": Sampling.generator(50, base.synthesize.guidance, base.synthesize.shift),
        "student": Sampling.student(4, base.distil.timesteps),
    }

    def run(name: str) -> float:
        start = time.perf_counter()
        keys = seeds(0, np.arange(batch))
        generate(params, keys, cond, shape, ways[name])
        return time.perf_counter() - start

    compilation = {name: run(name) for name in ways}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _repeat in range(_REPEATS.value):
        for name, taken in times.items():
            taken.append(run(name))
    ratios = [a / b for a, b in zip(times["teacher"], times["student"], strict=True)]
    result = {
        "setting": {
            "depth": config.depth, "width": config.width, "latents": [batch, *shape],
            "text": _TEXT.value, "dtype": _DTYPE.value, "parameters": parameter_count(model),
            "device": jax.devices()[0].device_kind, "jax": jax.__version__,
        },
        "seconds": {
            name: {
                "median": statistics.median(taken),
                "range": [min(taken), max(taken)],
                "first_call": compilation[name],
            }
            for name, taken in times.items()
        },
        "teacher_over_student": {
            "median": statistics.median(ratios), "range": [min(ratios), max(ratios)],
        },
    }  # fmt: skip
    for name, taken in times.items():
        steps = len(ways[name].sigmas) - 1
        print(f"{name}: {statistics.median(taken) / batch:.3f} s an image, {steps} steps")
    low, high = result["teacher_over_student"]["range"]
    print(f"the student is {statistics.median(ratios):.1f} x as fast ({low:.1f} to {high:.1f})")
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

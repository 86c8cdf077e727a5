"""`python -m benchmarks.text_forms`: bytes of a prompt on disk in each form, and the forms' errors.

Bytes are measured on files: sets of SD3-shaped records with the context of CLIP's 77 tokens and
T5's 256 (or 77), the pooled vector and, in the samples, a latent of 1024 x 1024 pixels. "in both,
float16" stores the text whole, and a second time beside each sample.

The error of a form is how far it turns the student's gradient in one step of distillation from the
gradient with text and latents in float32. The networks are random. The text is normal, or has a few
features that are far larger than the others, as T5's text does; latents are normal. T5 with fewer
tokens is not judged, since that needs trained encoders. Writes both to `--json`.
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.gradients import recording, shaken
from benchmarks.result_files import write_result
from benchmarks.text_records import Form, random_records
from ladd_jax.data.array_specs import ArraySpec, text_spec
from ladd_jax.data.shard_writing import write_shard
from ladd_jax.models.heads import HeadConfig
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit

_SEEDS = flags.DEFINE_integer("seeds", 3, "Weights and batches to draw.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/text_forms.json", "Where to write.")

RECORDS = 64
"""Records in a file. Files end at multiples of 64 KiB, which matters more with fewer records."""

ROUNDED = ("float16", "int8")

FORMS = {
    "in both, float16": Form("float16", copied=True),
    "float16": Form("float16"),
    "int8": Form("int8"),
    "int8, latents float16": Form("int8", "float16"),
    "int8, latents int8": Form("int8", "int8"),
    "float16, 77 tokens of T5": Form("float16", t5_tokens=77),
    "int8, 77 tokens of T5, latents float16": Form("int8", "float16", 77),
}


def bytes_of_a_prompt(form: Form) -> dict[str, float]:
    """Bytes on disk of one prompt: encoded, its sample, and both."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in form.layouts(RECORDS, per_shard=RECORDS).items():
            (shard,) = layout.shards()
            write_shard(folder, layout, shard, random_records(shard, form.t5_tokens))
            found[name] = shard.path(folder).stat().st_size / RECORDS
    return found | {"both": sum(found.values())}


def rounded(arrays: jax.Array, spec: ArraySpec) -> jax.Array:
    """Arrays `[n, ...]` as they come back from shards."""
    return jnp.stack(
        [spec.widen("", spec.pack("", spec.as_given(array))) for array in np.asarray(arrays)]
    )


def rounded_text(text: jax.Array, dtype: str) -> jax.Array:
    """Text `[n, ...]` as it comes back from shards of a dtype."""
    return rounded(text, text_spec(text.shape[1:], dtype))


def gradient_errors(seeds: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Cosine and relative error for each seed, by what is rounded and by the dtype it gets."""
    batch, side, tokens, width, pooled_width, channels = 8, 16, 24, 256, 64, 16
    config = MMDiTConfig(
        depth=2, width=128, num_heads=2, qk_norm=True, in_channels=channels, out_channels=channels,
        context_width=width, pooled_width=pooled_width, remat="none",
    )  # fmt: skip
    heads = HeadConfig(config.width, pooled_width, channels=32)
    student = mmdit(config)
    objective = recording(student, student, heads, config.depth)
    step = jax.jit(objective.step)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}

    def gradient(given: Any, cond: dict[str, jax.Array], latents: jax.Array) -> np.ndarray:
        after, _ = step(*given, {"latents": latents, "cond": cond})
        leaves = jax.tree.leaves(after.optimizer[0].trace)
        return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)

    def compare(kind: str, dtype: str, whole: np.ndarray, gradient: np.ndarray) -> None:
        rows = found.setdefault(kind, {})
        row = rows.setdefault(dtype, {"cosine": [], "relative_error": []})
        size = np.linalg.norm(whole)
        row["cosine"].append(float(gradient @ whole / np.linalg.norm(gradient) / size))
        row["relative_error"].append(float(np.linalg.norm(gradient - whole) / size))

    for seed in range(seeds):
        keys = jax.random.split(jax.random.PRNGKey(seed), 8)
        teacher = shaken(student.init(keys[0]), keys[1])
        start = shaken(teacher, keys[2])
        latents = jax.random.normal(keys[3], (batch, side, side, channels))
        context = jax.random.normal(keys[4], (batch, tokens, width))
        pooled = jax.random.normal(keys[5], (batch, pooled_width))
        given = objective.init(keys[7], start), {"teacher": teacher}
        # The largest of 256 log-normal features is some 16 times the median.
        sizes = jnp.exp(jax.random.normal(keys[6], (width,)))
        for kind, text in (("normal text", context), ("uneven text", context * sizes)):
            texts = {
                dtype: {"context": rounded_text(text, dtype), "pooled": rounded_text(pooled, dtype)}
                for dtype in ("float32", *ROUNDED)
            }
            whole = gradient(given, texts["float32"], latents)
            for dtype in ROUNDED:
                compare(kind, dtype, whole, gradient(given, texts[dtype], latents))
        cond = {"context": context, "pooled": pooled}
        whole = gradient(given, cond, latents)
        for dtype in ROUNDED:
            stored = rounded(latents, ArraySpec(("H", "W", channels), dtype))
            compare("latents", dtype, whole, gradient(given, cond, stored))
    return found


def main(_: list[str]) -> None:
    """Measures and prints."""
    sizes = {name: bytes_of_a_prompt(form) for name, form in FORMS.items()}
    print(f"{'MB of a prompt':>40} {'encoded':>8} {'sample':>8} {'both':>8}")
    for name, found in sizes.items():
        print(f"{name:>40} " + " ".join(f"{size / 1e6:8.2f}" for size in found.values()))
    errors = gradient_errors(_SEEDS.value)
    print(f"\n{'gradient of the student':>40} {'cosine':>10} {'error':>8}")
    for kind, dtypes in errors.items():
        for dtype, row in dtypes.items():
            cosine, error = (np.mean(row[name]) for name in ("cosine", "relative_error"))
            print(f"{f'{kind}, {dtype}':>40} {cosine:10.7f} {error:8.5f}")
    result = {"bytes": sizes, "gradient": errors, "seeds": _SEEDS.value}
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)

"""`python -m ladd_jax.export --workdir=DIR --out=DIR`: a student for diffusers and ComfyUI.

The config is the workdir's. `--layout=diffusers` writes a folder that
`StableDiffusion3Pipeline.from_pretrained` loads, `single` the transformer as Stability AI's single
files have it, `both` one folder with both; a model card says how to call them.
"""

import math
import os
import shutil
import uuid
from pathlib import Path

import jax
import jax.numpy as jnp

from ladd_jax.config import architectures
from ladd_jax.config.fields import Config
from ladd_jax.config.workdir import read
from ladd_jax.data.buckets import Bucket, nearest
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.card import model_card
from ladd_jax.models.sd3.encoder_weights import read_autoencoder_config
from ladd_jax.models.sd3.pipeline import read_index, write_json, write_surroundings
from ladd_jax.models.sd3.weights import save_mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import load as stages
from ladd_jax.stages.trained import FACTS
from ladd_jax.weights.source import fetch_pipeline

LAYOUTS = {
    "diffusers": ("diffusers",),
    "single": ("single",),
    "both": ("diffusers", "single"),
}


def export(
    workdir: Path,
    out: Path,
    *,
    model: str = "ema",
    step: int | None = None,
    layout: str = "diffusers",
    dtype: str = "bfloat16",
) -> None:
    """Writes a student of a run as files that other programs read, all of them or none.

    Args:
      workdir: of the run.
      out: the folder to make.
      model: `ema` or `student`.
      step: of the checkpoint; default: the newest.
      layout: `diffusers`, `single` or `both`.
      dtype: of the transformer's files; the other components are copied.

    Raises:
      NotFoundError: there is no such run, checkpoint or pipeline.
      UserError: there is something at `out`.
      UserError: the run is not one of released weights.
    """
    config = read(workdir)
    if not config.weights:
        raise UserError(
            f"{workdir} has a data generator of its own (weights is empty): export a run that "
            f"started from a released pipeline"
        )
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another --out")
    source = fetch_pipeline(config.weights)
    read_index(source)
    reduction = read_autoencoder_config(source).reduction
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    step = stages.student_step(config, workdir, step)
    params = stages.load_student_weights(config, workdir, mesh, model, step)
    architecture = architectures.student_architecture(config)
    layouts = LAYOUTS[layout]
    partial = out.absolute().with_name(f".{out.absolute().name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}): name another --out") from error
    try:
        if "diffusers" in layouts:
            write_surroundings(source, partial)
            save_mmdit(
                partial / "transformer",
                params,
                architecture,
                jnp.dtype(dtype),
                sample_size=_sample_size(config),
            )
            facts = {
                "times": list(config.distil.timesteps),
                "buckets": list(config.data.buckets),
                "text_length": config.data.text_length,
                "step": step,
            }
            write_json(partial / FACTS, facts)
        if "single" in layouts:
            file = partial / f"{out.absolute().name}.safetensors"
            save_mmdit(file, params, architecture, jnp.dtype(dtype), "stability")
        card = model_card(config, out.absolute().name, model, step, dtype, reduction, layouts)
        (partial / "README.md").write_text(card)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sample_size(config: Config) -> int:
    """Side of the square latents that a pipeline makes where nobody names a size."""
    bucket = nearest([Bucket.parse(name) for name in config.data.buckets], 1, 1)
    side = math.isqrt(bucket.height * bucket.width)
    return side - side % config.model.patch

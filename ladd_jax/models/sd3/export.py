"""Writes a student as files in which diffusers and ComfyUI read Stable Diffusion 3."""

import math
from logging import getLogger
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ladd_jax.errors import UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.families import ADAPTERS, Export
from ladd_jax.models.sd3.card import KOHYA, model_card
from ladd_jax.models.sd3.encoder_weights import open_autoencoder
from ladd_jax.models.sd3.lora_files import layout, save_kohya_lora, save_lora
from ladd_jax.models.sd3.pipeline import CLASSES, read_index, write_surroundings
from ladd_jax.models.sd3.weights import save_mmdit
from ladd_jax.paths import expand
from ladd_jax.weights.source import LORA_WEIGHTS, fetch_pipeline

_LOG = getLogger(__name__)

LAYOUTS = {
    "diffusers": ("diffusers",),
    "single": ("single",),
    "both": ("diffusers", "single"),
    "lora": (ADAPTERS,),
    "kohya": (ADAPTERS, KOHYA),
}
"""`diffusers` is a pipeline's folder, `single` the transformer in the layout of Stability AI's
single files, `lora` the adapters of a student that has some, and `kohya` the same under the names
of Kohya's scripts."""


def write_export(folder: Path, export: Export) -> None:
    """Fills a folder with a student's files and their model card; see `Family.write_export`.

    Raises:
      NotFoundError: the base pipeline, or a component that it names, is not there.
      UserError: the base is another pipeline, or the dtype is not one that weights can have.
    """
    if export.joined and set(export.layouts) != {"diffusers"}:
        raise UserError(
            f"the student is given pictures (data.joined is {export.joined!r}), which programs "
            f"that read other layouts cannot give it: use --layout=diffusers"
        )
    if export.joined not in CLASSES:
        raise UserError(
            f"the student is given what no pipeline of diffusers gives (data.joined is "
            f"{export.joined!r}): sample or serve it from its run"
        )
    reduction = open_autoencoder(export.base).config.reduction
    if expand(export.base).is_file() and not {"single", KOHYA} & set(export.layouts):
        raise UserError(
            f"the base {export.base} is a single file, and this layout needs the folder of a "
            f"pipeline to copy or to load adapters into: use --layout=single, or kohya for "
            f"adapters"
        )
    if "diffusers" in export.layouts:
        source = fetch_pipeline(export.base)
        read_index(source)
        _LOG.info("export: copying all but the transformer from %s", export.base)
        write_surroundings(source, folder, METHODS[export.objective].sampler, export.joined)
    dtype = jnp.dtype(export.dtype)
    if export.adapters is not None:
        network, load = export.adapters
        # Made first, so that adapters which other programs cannot use are refused before reading.
        files = layout(export.architecture, network)
        _LOG.info("export: reading the adapters")
        params = network.scaled(load())
        kohya = KOHYA in export.layouts
        file = folder / (f"{export.name}.safetensors" if kohya else LORA_WEIGHTS)
        _LOG.info("export: writing %s, in %s", file.name, export.dtype)
        if kohya:
            save_kohya_lora(file, params, export.architecture, network, dtype)
        else:
            save_lora(file, params, files, dtype)
    else:
        _write_whole(folder, export, dtype)
    (folder / "README.md").write_text(model_card(export, reduction))


def _write_whole(folder: Path, export: Export, dtype: Any) -> None:
    _LOG.info("export: reading the student")
    params = export.load()
    if "diffusers" in export.layouts:
        _LOG.info("export: writing the transformer for diffusers, in %s", export.dtype)
        save_mmdit(
            folder / "transformer",
            params,
            export.architecture,
            dtype,
            sample_size=_sample_size(export),
        )
    if "single" in export.layouts:
        file = folder / f"{export.name}.safetensors"
        _LOG.info("export: writing %s, in %s", file.name, export.dtype)
        save_mmdit(file, params, export.architecture, dtype, "stability")


def _sample_size(export: Export) -> int:
    """Side of the square latents that a pipeline makes by default."""
    side = math.isqrt(math.prod(export.square))
    return side - side % export.architecture.patch

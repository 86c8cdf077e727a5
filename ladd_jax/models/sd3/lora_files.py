"""Adapters of SD3's transformer as files that diffusers, PEFT and ComfyUI read."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ladd_jax.models.base import Params
from ladd_jax.models.lora import LOW_RANK, Adapted
from ladd_jax.models.sd3 import diffusers_layout
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.files import weight_dtype, write_safetensors
from ladd_jax.weights.layout import low_rank, tensor_shapes
from ladd_jax.weights.transfer import write_tensors

FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""

_PREFIX = "transformer."


def layout(config: MMDiTConfig, network: Adapted) -> Params:
    """The tensors behind adapters, as a tree of `weights.layout`.

    Args:
      config: architecture of the network that is adapted.
      network: its adapters.

    Raises:
      UserError: adapters of a layer that the files of others do not have as a dense one.
    """
    base = network.base.shapes
    return _layout(diffusers_layout.layout(config, base), base, network.shapes)


def _layout(files: Params, base: Params, adapters: Params) -> Params:
    return {
        name: low_rank(files["kernel"], base["kernel"].shape)
        if name == LOW_RANK
        else _layout(files[name], base[name], inner)
        for name, inner in adapters.items()
    }


def save_lora(path: Path, params: Params, files: Params, dtype: Any = jnp.float32) -> None:
    """Writes adapters for `load_lora_weights` of diffusers.

    Files of this kind have no alpha, which is then the rank: see `Adapted.scaled`.

    Args:
      path: the file.
      params: the adapters, which count once.
      files: their `layout`.
      dtype: dtype of the file.

    Raises:
      UserError: a dtype that weights are not kept in.
    """
    dtype = weight_dtype(dtype)
    names = {_PREFIX + name: shape for name, shape in tensor_shapes(files, params).items()}
    write_safetensors(path, names, dtype, write_tensors(files, params, dtype), {"format": "pt"})

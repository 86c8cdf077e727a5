"""Adapters of SD3's transformer as files that diffusers, PEFT and ComfyUI read."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.models.base import Params
from ladd_jax.models.lora import LOW_RANK, Adapted
from ladd_jax.models.sd3 import diffusers_layout
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.models.sd3.weights import whole
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


def save_lora(
    path: Path, params: Params, config: MMDiTConfig, network: Adapted, dtype: Any = jnp.float32
) -> None:
    """Writes adapters for `load_lora_weights` of diffusers; every process of a mesh takes part.

    Files of this kind have no alpha: theirs is the rank. So B is multiplied by what its product
    with A counts.

    Args:
      path: the file.
      params: the adapters.
      config: architecture of the network that is adapted.
      network: the adapted network.
      dtype: dtype of the file.

    Raises:
      UserError: see `layout`, or a dtype that weights are not kept in.
    """
    dtype, tree = weight_dtype(dtype), layout(config, network)
    params = network.scaled(params)
    shapes = tensor_shapes(tree, params)
    tensors = write_tensors(tree, params, dtype, whole)
    if jax.process_index():
        for leaf in jax.tree.leaves(params):
            whole(leaf)
        return
    names = {_PREFIX + name: shape for name, shape in shapes.items()}
    write_safetensors(path, names, dtype, tensors, {"format": "pt"})

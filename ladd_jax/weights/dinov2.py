"""DINOv2 as `transformers` saves it: where each parameter is, and the network from a folder.

`transformers` itself is not needed, since training reads these weights without it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import Params
from ladd_jax.models.dinov2 import Dinov2, Dinov2Config
from ladd_jax.weights.files import StoredTensor, read_headers
from ladd_jax.weights.layout import Tree, linear, norm, patch_kernel, same, stacked
from ladd_jax.weights.prefixes import below, prefixes
from ladd_jax.weights.sizes import check_depth, check_sizes
from ladd_jax.weights.source import fetch_model, weight_files
from ladd_jax.weights.transfer import check_tensors, load
from ladd_jax.whole_files import read_json

# Defaults of `transformers`: a config may leave out fields that have these values.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "image_size": 224,
}
_KINDS: dict[str, dict[str, Any]] = {
    "dinov2": {"patch_size": 14, "num_register_tokens": 0},
    "dinov2_with_registers": {"patch_size": 16, "num_register_tokens": 4},
}
_ONLY = {"num_channels": 3, "qkv_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-6}

# Used only when DINOv2 itself is trained.
_IGNORED = frozenset({"embeddings.mask_token"})


@dataclasses.dataclass(frozen=True)
class OpenDinov2:
    """A DINOv2 whose files have been checked but whose weights have not been read yet.

    Attributes:
      config: its architecture.
      tensors: the files' tensors.
    """

    config: Dinov2Config
    tensors: Mapping[str, StoredTensor]

    def load(self, network: Dinov2, mesh: Mesh | None = None) -> Params:
        """The parameters, on a mesh or the first device.

        Args:
          network: the network, whole or only up to some block; nothing beyond that is read.
          mesh: mesh to shard them over.
        """
        layout = dinov2_layout(network.config)
        return load(self.tensors, layout, network.shapes, network.axes, mesh)


def open_dinov2(place: Path | str) -> OpenDinov2:
    """Finds and checks the files of a DINOv2, with or without registers; reads no weights.

    Args:
      place: a folder that `Dinov2Model.save_pretrained` wrote, or owner/name on the hub.

    Raises:
      NotFoundError: a file is missing, or cannot be fetched from the hub.
      UserError: the config belongs to another model, or a tensor is missing, unknown or misshaped.
    """
    folder = fetch_model(place)
    config = read_dinov2_config(folder)
    tensors = read_headers(weight_files(folder))[0]
    # Files of a classifier built on DINOv2 put a prefix before all of its names.
    tensors = below(next(iter(prefixes(tensors, "embeddings.cls_token")), ""), tensors)
    check_depth(config.num_hidden_layers, tensors, folder)
    check_tensors(folder, tensors, dinov2_layout(config), Dinov2(config).shapes, _IGNORED)
    return OpenDinov2(config, tensors)


def read_dinov2_config(folder: Path) -> Dinov2Config:
    """The architecture in a folder's `config.json`.

    Raises:
      NotFoundError: there is no config.
      UserError: it is damaged, belongs to another model, or sets a field to an unsupported value.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise NotFoundError(
            f"no {path}: give the folder of a DINOv2 in transformers' layout, or its name on the "
            f"hub, such as facebook/dinov2-small"
        )
    found = read_json(path)
    kind = str(found.get("model_type"))
    if kind not in _KINDS:
        raise UserError(
            f"{path} is of a {kind!r} model: give the folder of a DINOv2, or its name on the hub, "
            f"such as facebook/dinov2-small"
        )
    for name, value in _ONLY.items():
        if found.get(name, value) != value:
            raise UserError(
                f"{path} has {name} {found[name]!r} and only {value!r} is supported: use another "
                f"DINOv2"
            )
    defaults = _DEFAULTS | _KINDS[kind]
    fields = {name: found.get(name, value) for name, value in defaults.items()}
    for name in ("image_size", "patch_size"):
        fields[name] = _side(fields[name])
    if kind == "dinov2":
        fields["num_register_tokens"] = 0
    sizes = ["hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size",
             "patch_size"]  # fmt: skip
    check_sizes(fields, sizes + ["num_register_tokens"] * (kind != "dinov2"), path)
    if fields["hidden_size"] % fields["num_attention_heads"]:
        raise UserError(
            f"hidden_size {fields['hidden_size']} in {path} is not divisible by "
            f"num_attention_heads {fields['num_attention_heads']}: get the file again"
        )
    if fields["patch_size"] > fields["image_size"]:
        raise UserError(
            f"patch_size {fields['patch_size']} in {path} is above image_size "
            f"{fields['image_size']}: get the file again"
        )
    if type(fields["use_swiglu_ffn"]) is not bool:
        raise UserError(f"use_swiglu_ffn in {path} is neither true nor false: get the file again")
    return Dinov2Config(**fields)


def _side(found: Any) -> Any:
    """The side of a square, which a config may also give as two equal sides."""
    if isinstance(found, list) and len(found) == 2 and found[0] == found[1]:
        return found[0]
    return found


def dinov2_layout(config: Dinov2Config) -> Tree:
    """The tensors behind each parameter."""

    def block(i: int) -> Tree:
        name = f"encoder.layer.{i}"
        if config.use_swiglu_ffn:
            mlp = {
                "up": linear(f"{name}.mlp.weights_in"),
                "down": linear(f"{name}.mlp.weights_out"),
            }
        else:
            mlp = {"up": linear(f"{name}.mlp.fc1"), "down": linear(f"{name}.mlp.fc2")}
        parts = (f"{name}.attention.attention.{part}" for part in ("query", "key", "value"))
        return {
            "norm1": norm(f"{name}.norm1"),
            "qkv": linear(*parts),
            "out": linear(f"{name}.attention.output.dense"),
            "scale1": same(f"{name}.layer_scale1.lambda1"),
            "norm2": norm(f"{name}.norm2"),
            "mlp": mlp,
            "scale2": same(f"{name}.layer_scale2.lambda1"),
        }

    patches = "embeddings.patch_embeddings.projection"
    layout = {
        "patches": {
            "kernel": patch_kernel(f"{patches}.weight", config.patch_size),
            "bias": same(f"{patches}.bias"),
        },
        "summary": same("embeddings.cls_token"),
        "positions": same("embeddings.position_embeddings"),
        "blocks": stacked([block(i) for i in range(config.num_hidden_layers)]),
        "final_norm": norm("layernorm"),
    }
    if config.num_register_tokens:
        layout["registers"] = same("embeddings.register_tokens")
    return layout

"""Adapters of SD3's transformer as files of others: written for diffusers and under the names of
Kohya's scripts, and read from all."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.models.base import Params
from ladd_jax.models.lora import LOW_RANK, Adapted
from ladd_jax.models.sd3 import diffusers_layout, stability_layout
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.weights.files import StoredTensor, weight_dtype, write_safetensors
from ladd_jax.weights.layout import Leaf, Shape, low_rank, tensor_shapes
from ladd_jax.weights.lora import Matrices, read_lora_headers
from ladd_jax.weights.transfer import write_tensors

_PREFIX = "transformer."
_KOHYA_PREFIX, _KOHYA_DOWN = "lora_unet_", ".lora_down.weight"
_KOHYA_ENDS = {"A.weight": _KOHYA_DOWN, "B.weight": ".lora_up.weight"}


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


def _fused(params: Params) -> Params:
    """Adapters that do the same with one A and one B for a layer of P parts.

    A has the rows of all parts, so that the rank is P times as large; B is theirs along its
    diagonal and zero elsewhere.
    """
    made: Params = {}
    for name, inner in params.items():
        if name != LOW_RANK:
            made[name] = _fused(inner)
            continue
        down, up = inner["down"], inner["up"]
        *stacked, inputs, parts, rank = down.shape
        if parts > 1:
            own = jnp.eye(parts, dtype=up.dtype)
            outputs = up.shape[len(stacked) + 2 :]
            # [..., P, r, *O] -> [..., P, r, P, *O], each at its own place of the second P.
            up = up.reshape(*stacked, parts, rank, 1, -1) * own[:, None, :, None]
            up = up.reshape(*stacked, 1, parts * rank, parts, *outputs)
        made[name] = {"down": down.reshape(*stacked, inputs, 1, parts * rank), "up": up}
    return made


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
    _save(path, params, files, dtype, _PREFIX.__add__)


def save_kohya_lora(
    path: Path, params: Params, config: MMDiTConfig, network: Adapted, dtype: Any = jnp.float32
) -> None:
    """Writes adapters under the names of Kohya's scripts, with the rank as alpha.

    Layers are those of Stability's files, where one is several parts of ours.

    Args:
      path: the file.
      params: the adapters, which count once.
      config: architecture of the network that is adapted.
      network: its adapters.
      dtype: dtype of the file, alpha excepted.

    Raises:
      UserError: a dtype that weights are not kept in, or adapters of a layer that the files of
        others do not have as a dense one.
    """
    base = network.base.shapes
    files = _layout(stability_layout.layout(config, base), base, network.shapes)
    _save(path, _fused(params), files, dtype, _kohya_name)


def _save(
    path: Path, params: Params, files: Params, dtype: Any, named: Callable[[str], str]
) -> None:
    dtype = weight_dtype(dtype)
    names = {named(name): shape for name, shape in tensor_shapes(files, params).items()}
    alphas = {
        f"{name.removesuffix(_KOHYA_DOWN)}.alpha": float(shape[0])
        for name, shape in names.items()
        if name.endswith(_KOHYA_DOWN)
    }
    tensors = write_tensors(files, params, dtype)
    write_safetensors(path, names, dtype, tensors, {"format": "pt"}, alphas)


def _kohya_name(name: str) -> str:
    layer, _, end = name.rpartition(".lora_")
    return f"{_KOHYA_PREFIX}{layer.replace('.', '_')}{_KOHYA_ENDS[end]}"


@dataclasses.dataclass(frozen=True)
class OpenLoRA:
    """A LoRA file whose layers are known to be those of a network, not read yet.

    Attributes:
      file: the file.
      found: its matrices by the names of layers in `files`.
      files: the layout that has these names, a tree of `weights.layout`.
      shapes: shapes of the network, whose layers may be fewer than the file's.
    """

    file: Path
    found: Mapping[str, Matrices]
    files: Params
    shapes: Params

    def load(self) -> Params:
        """Adapters for `models.lora.add_adapters`, float32 arrays of numpy.

        Layers of one array have the largest of their ranks: what they lack is zero, as is a layer
        that the file does not adapt.

        Raises:
          DamagedError: a number is not finite.
        """
        return _loaded(self.found, self.files, self.shapes)


def open_lora(place: str, config: MMDiTConfig) -> OpenLoRA:
    """A LoRA of a transformer, as diffusers, PEFT, Kohya or ComfyUI name its layers.

    Args:
      place: the file, its folder, or owner/name of the hub.
      config: architecture of the transformer; of one that is cut, its first layers are taken.

    Raises:
      NotFoundError: nothing is there.
      UserError: what is there is no LoRA of this transformer.
    """
    file, found = read_lora_headers(place)
    # Nobody else has the layers that a told student has besides.
    config = dataclasses.replace(config, guided=False, image_guided=False)
    whole = mmdit(dataclasses.replace(config, cut=0)).shapes
    shapes = mmdit(config).shapes if config.cut else whole

    def known(naming: Any) -> tuple[dict[str, Shape], dict[str, str]]:
        dense = _dense(naming.layout(config, whole), whole)
        # In Kohya's names points are underscores.
        return dense, {form: name for name in dense for form in (name, name.replace(".", "_"))}

    # One that has some layers and not all is the one that is meant.
    namings = [(naming, *known(naming)) for naming in (diffusers_layout, stability_layout)]
    naming, dense, names = max(namings, key=lambda each: len(found.keys() & each[2].keys()))
    unknown = next((layer for layer in found if layer not in names), None)
    if unknown is not None:
        raise UserError(
            f"{file} adapts {unknown}, which is no dense layer of a transformer of {config.depth} "
            f"blocks as Stable Diffusion 3 has it: give a LoRA of the model that it is added to"
        )
    for layer, matrices in found.items():
        outputs, inputs = dense[names[layer]]
        have = matrices.up.shape[0], matrices.down.shape[1]
        if have != (outputs, inputs):
            raise UserError(
                f"{file} adapts {layer} as [O, I] = {list(have)} and the network has "
                f"{[outputs, inputs]}: give a LoRA of the model that it is added to"
            )
    by_name = {names[layer]: matrices for layer, matrices in found.items()}
    if len(by_name) < len(found):
        raise DamagedError(f"{file} has a layer under two names: get it again")
    return OpenLoRA(file, by_name, naming.layout(config, shapes), shapes)


def _dense(files: Params, shapes: Params) -> dict[str, Shape]:
    """Shapes in the files, `[O, I]`, of all dense layers by name."""
    pairs = zip(jax.tree.leaves(files), jax.tree.leaves(shapes), strict=True)
    pieces = (piece for leaf, array in pairs for piece in leaf.pieces(array.shape))
    return {
        piece.name.removesuffix(".weight"): piece.shape
        for piece in pieces
        if piece.name.endswith(".weight") and len(piece.shape) == 2
    }


def _loaded(found: Mapping[str, Matrices], files: Params, shapes: Params) -> Params:
    made: Params = {}
    for name, inner in shapes.items():
        if isinstance(inner, dict):
            if below := _loaded(found, files[name], inner):
                made[name] = below
        elif name == "kernel":
            leaf, shape = files[name], inner.shape
            stems = [tensor.removesuffix(".weight") for tensor in leaf.names]
            ranks = [found[stem].rank for stem in stems if stem in found]
            if ranks:
                made[LOW_RANK] = _adapters(found, leaf, shape, max(ranks))
    return made


def _adapters(found: Mapping[str, Matrices], kernel: Leaf, shape: Shape, rank: int) -> Params:
    """Both matrices of an array of layers, `[..., I, P, r]` and `[..., P, r, *O]`."""
    given = kernel.pieces(shape)
    stacked = shape[:1] if 0 in given[0].at else ()
    parts = 1 + max(piece.at.get(1 + len(stacked), 0) for piece in given)
    inputs, *outputs = given[0].ours
    both = low_rank(kernel, shape)
    made = {
        "down": np.zeros((*stacked, inputs, parts, rank), np.float32),
        "up": np.zeros((*stacked, parts, rank, *outputs), np.float32),
    }
    for name, array in made.items():
        for piece in both[name].pieces(array.shape):
            matrices = found.get(piece.name.rpartition(".lora_")[0])
            if matrices is None:
                continue
            values = np.zeros(piece.shape, np.float32)
            if name == "down":
                values[: matrices.rank] = _values(matrices.down)
            else:
                values[:, : matrices.rank] = _values(matrices.up, matrices.scale)
            index = tuple(piece.at.get(axis, slice(None)) for axis in range(array.ndim))
            array[index] = piece.read(values)
    return made


def _values(tensor: StoredTensor, scale: float = 1.0) -> np.ndarray:
    """A matrix in float32, with its scale."""
    with np.errstate(over="ignore"):
        found: np.ndarray = np.float32(scale) * tensor.map().astype(np.float32)
    if not np.isfinite(found).all():
        raise DamagedError(
            f"tensor {tensor.name} in {tensor.file} has numbers that are not finite, by itself or "
            f"with its alpha: get it again, or leave the LoRA out"
        )
    return found

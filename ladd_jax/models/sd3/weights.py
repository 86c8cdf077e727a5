"""Reads weights of SD3's transformer onto a mesh, and writes them, in both layouts of files."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ladd_jax.errors import ExistsError, UserError
from ladd_jax.models.base import Model, Params
from ladd_jax.models.sd3 import diffusers_layout, stability_layout
from ladd_jax.models.sd3.network_layout import HEADS, infer_config
from ladd_jax.models.sd3.positions import check_positions, position_table, table_side
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.ranges import check_choice
from ladd_jax.weights.files import StoredTensor, read_headers, weight_dtype, write_safetensors
from ladd_jax.weights.layout import only, tensor_shapes
from ladd_jax.weights.prefixes import below, prefixes
from ladd_jax.weights.source import WEIGHTS, find
from ladd_jax.weights.transfer import load, write_tensors
from ladd_jax.whole_files import whole

SHARD_BYTES = 5_000_000_000
"""Size above which weights are split over several files, as recommended for the hub."""


@dataclasses.dataclass(frozen=True)
class LoadedMMDiT:
    """A network with its weights.

    Attributes:
      config: architecture and dtypes.
      model: the network as a function of its parameters.
      params: its parameters, on `mesh`.
      mesh: mesh that they are on.
    """

    config: MMDiTConfig
    model: Model
    params: Params
    mesh: Mesh

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        return jax.jit(self.model.__call__)

    def __call__(
        self, latents: jax.Array, t: jax.Array, context: jax.Array, pooled: jax.Array
    ) -> jax.Array:
        """Velocity float32 `[B, H, W, out_channels]`.

        Args:
          latents: `[B, H, W, in_channels]`, all channels that the network reads.
          t: float32 `[B]`, see `MMDiT.__call__`.
          context: `[B, T, context_width]`.
          pooled: `[B, pooled_width]`.
        """
        c = self.config.out_channels
        cond = {"context": context, "pooled": pooled}
        if self.config.in_channels > c:
            latents, cond["channels"] = latents[..., :c], latents[..., c:]
        with jax.set_mesh(self.mesh):
            return self._program(self.params, latents, t, cond)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Files whose tensors have been checked to be exactly those of an MMDiT.

    Attributes:
      config: architecture and dtypes.
      model: the network.
      tensors: the files' tensors, under the names of the layout.
      layout: the tensors behind each parameter, a tree of `weights.layout`.
    """

    config: MMDiTConfig
    model: Model
    tensors: Mapping[str, StoredTensor]
    layout: Params

    def cut(self, blocks: int) -> "Checkpoint":
        """The network cut after its first blocks (0: whole), so that nothing else is read."""
        config = dataclasses.replace(self.config, cut=blocks)
        model = mmdit(config)
        return dataclasses.replace(
            self, config=config, model=model, layout=only(self.layout, model.shapes)
        )

    def load(self, mesh: Mesh) -> Params:
        """All parameters; each process reads only what its devices hold."""
        return load(self.tensors, self.layout, self.model.shapes, self.model.axes, mesh)


def open_mmdit(
    path: str | Path, dtype: Any = jnp.bfloat16, variant: str | None = None
) -> Checkpoint:
    """Finds and checks the files of an MMDiT, reading no weights; see `load_mmdit`."""
    dtype = weight_dtype(dtype)
    source = find(path, variant, network="MMDiT", pipeline="Stable Diffusion 3")
    tensors, metadata = read_headers(source.files)
    place = source.files[0] if len(source.files) == 1 else source.files[0].parent
    fields = {"dtype": dtype, "param_dtype": dtype}
    files: Any = diffusers_layout
    if source.config is not None:
        config = diffusers_layout.read_config(source.config, tensors, **fields)
    else:
        files, prefix = _single_layout(place, tensors)
        tensors = below(prefix, tensors)
        config = infer_config(files.DECIDING, place, tensors, metadata, **fields)
    model = mmdit(config)
    tree = files.layout(config, model.shapes)
    table = files.POSITIONS
    _check_tensors(place, tensors, tensor_shapes(tree, model.shapes), config, table)
    check_positions(tensors[table], config)
    return Checkpoint(config, model, tensors, tree)


def load_mmdit(
    path: str | Path,
    dtype: Any = jnp.bfloat16,
    mesh: Mesh | None = None,
    variant: str | None = None,
) -> LoadedMMDiT:
    """Loads SD3, SD3.5 or a network of their kind.

    The architecture is read from `config.json` or, for single files, from names and shapes, where
    names are Stability's or diffusers' after any prefix. Weights may be in float32, float16,
    bfloat16 or float8, with or without scales.

    Args:
      path: a diffusers pipeline's folder, a transformer's folder, a single `.safetensors` file, or
        a repository on the hub as `owner/name`.
      dtype: dtype of parameters and computation.
      mesh: mesh to put the parameters on, by the rules of `parallel.mesh`; default: the first
        device.
      variant: variant of a diffusers folder's files, such as `fp16`; default: the files without a
        variant, or those of the only one.

    Raises:
      NotFoundError: nothing is there, or the hub does not give access.
      UserError: files are truncated or of another kind of model; a tensor is missing, unknown, or
        has another shape or dtype; positions are trained; or weights cannot have the dtype.
    """
    checkpoint = open_mmdit(path, dtype, variant)
    mesh = make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
    return LoadedMMDiT(checkpoint.config, checkpoint.model, checkpoint.load(mesh), mesh)


def read_mmdit_config(
    path: str | Path, dtype: Any = jnp.bfloat16, variant: str | None = None
) -> MMDiTConfig:
    """The architecture of an MMDiT's files, without reading weights; see `load_mmdit`."""
    return open_mmdit(path, dtype, variant).config


def save_mmdit(
    path: str | Path,
    params: Params,
    config: MMDiTConfig,
    dtype: Any = jnp.bfloat16,
    layout: str = "diffusers",
    *,
    sample_size: int = 128,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes parameters as files that other programs read, all of them or none.

    All processes of a mesh call it, and the first one writes.

    Args:
      path: the transformer's folder to make for `diffusers`, or the file for `stability`.
      params: parameters, a tree as `load_mmdit` gives it.
      config: the network's architecture.
      dtype: dtype of the files: float32, float16 or bfloat16.
      layout: `diffusers` or `stability`.
      sample_size: side of the latents that a diffusers pipeline makes by default.
      shard_bytes: size above which a diffusers model is split over several files.

    Raises:
      ExistsError: there is something at `path`.
      UserError: the layout or dtype is unknown, the layout cannot hold the network, or parameters
        belong to another network.
    """
    path = Path(path)
    check_choice(layout, "layout", "diffusers", "stability")
    dtype = weight_dtype(dtype)
    if path.exists():
        raise ExistsError(f"{path} exists: remove it, or choose another path")
    _check_params(params, config)
    files = diffusers_layout if layout == "diffusers" else stability_layout
    description = diffusers_layout.config_json(config, sample_size) if layout == "diffusers" else {}
    tree = files.layout(config, params)
    shapes = tensor_shapes(tree, params)
    shapes[files.POSITIONS] = (1, config.position_table**2, config.width)

    def tensors() -> Iterator[np.ndarray]:
        yield from write_tensors(tree, params, dtype, _whole)
        yield position_table(config, dtype)

    if jax.process_index():
        for leaf in jax.tree.leaves(params):
            _whole(leaf)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            if layout == "diffusers":
                partial.mkdir()
                _write_sharded(partial, shapes, dtype, tensors(), shard_bytes)
                (partial / "config.json").write_text(json.dumps(description, indent=2) + "\n")
            else:
                names = {stability_layout.PREFIX + name: shape for name, shape in shapes.items()}
                metadata = {"format": "pt", HEADS: str(config.num_heads)}
                write_safetensors(partial, names, dtype, tensors(), metadata)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{path} is written")


def _whole(leaf: Any) -> np.ndarray:
    """A whole array, gathered from other processes if they have parts of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _write_sharded(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    tensors: Iterator[np.ndarray],
    limit: int,
) -> None:
    """Writes a diffusers model's weights to one file, or to several with an index."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, shape in shapes.items():
        bytes_ = math.prod(shape) * dtype.itemsize
        if groups[-1] and size + bytes_ > limit:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size, total = size + bytes_, total + bytes_
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        part = "" if len(groups) == 1 else f"-{number:05d}-of-{len(groups):05d}"
        file = folder / f"{WEIGHTS}{part}.safetensors"
        write_safetensors(file, group, dtype, (next(tensors) for _ in group), {"format": "pt"})
        weight_map |= dict.fromkeys(group, file.name)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / f"{WEIGHTS}.safetensors.index.json").write_text(text + "\n")


def _check_params(params: Params, config: MMDiTConfig) -> None:
    def by_path(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {".".join(key.key for key in keys): np.shape(leaf) for keys, leaf in leaves}

    have, want = by_path(params), by_path(mmdit(config).shapes)
    for path in sorted(have.keys() | want.keys()):
        if have.get(path) != want.get(path):
            raise UserError(
                f"parameter {path} has shape {have.get(path)} and the config's network has "
                f"{want.get(path)}: give parameters and config of one network"
            )


def _single_layout(file: Path, tensors: Mapping[str, StoredTensor]) -> tuple[Any, str]:
    """The layout of a file without a config, and the prefix of its names."""
    for files in (stability_layout, diffusers_layout):
        found = prefixes(tensors, files.MARK)
        if len(found) > 1:
            raise UserError(
                f"{file} holds {len(found)} transformers ({', '.join(found)}): give a file of one"
            )
        if found:
            return files, found[0]
    _refuse_others(file, tensors)
    return stability_layout, ""


def _refuse_others(file: Path, tensors: Mapping[str, StoredTensor]) -> None:
    for mark, what in (
        ("lora", "a LoRA"),
        (".input_blocks.", "a U-Net"),
        ("down_blocks.", "a U-Net"),
    ):
        for name in tensors:
            if mark in name:
                raise UserError(
                    f"{file} holds {what} (tensor {name}), not an MMDiT: give a Stable Diffusion 3 "
                    f"pipeline, its transformer folder, or a single .safetensors file"
                )


def _check_tensors(
    place: Path,
    tensors: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    config: MMDiTConfig,
    table: str,
) -> None:
    if table in tensors:
        table_side(tensors[table])
    expected = {**shapes, table: (1, config.position_table**2, config.width)}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(
            f"tensor {missing[0]} is missing in {place}{_more(missing)}: the network has "
            f"{config.depth} blocks of width {config.width}, get files that are complete"
        )
    extra = [name for name in tensors if name not in expected]
    if extra:
        raise UserError(
            f"tensor {extra[0]} in {place} has no place in the network{_more(extra)}: give the "
            f"files of a Stable Diffusion 3 MMDiT"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"tensor {name} in {tensors[name].file} has shape {list(tensors[name].shape)} and "
                f"the network needs {list(shape)}: the files do not belong together"
            )
        tensors[name].check()


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

"""`python -m tests.parallel.write_shardings`: writes where each array of a distillation lies.

The files beside this one, `shardings/MODEL.MESH.txt`, are what `test_shardings.py` compares with:
after a change of a layout that is meant, write them again and read the difference. No device is
needed. Trees of the state that lie alike, such as a network and its moments, share one table.
"""

import dataclasses
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from configs import sd3_turbo
from ladd_jax.config import objectives
from ladd_jax.config.fields import typed
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.mesh import MESH_AXES, mesh_shape, parameter_shardings
from ladd_jax.training.program import state_layout

FOLDER = Path(__file__).parent / "shardings"
MODELS = {"sd3_medium": "medium", "sd3.5_medium": "medium3.5", "sd3.5_large": "large"}
MESHES = {
    "fsdp32": {"fsdp": 32},
    "data2_fsdp8_tensor2": {"data": 2, "fsdp": 8, "tensor": 2},
    "fsdp256": {"fsdp": 256},  # Does not divide the width of 2432.
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the state.

    Attributes:
      tree: the part of the state that it is in, such as `params` or `optimizer/mu`.
      path: its name in that tree.
      shape: of the whole array.
      spec: mesh axes of each dimension.
      bytes: of the whole array.
      local: bytes on one device.
    """

    tree: str
    path: str
    shape: tuple[int, ...]
    spec: tuple[Any, ...]
    bytes: int
    local: int

    @property
    def replicated(self) -> bool:
        """Whether every device has all of it."""
        return self.local == self.bytes


def objective_of(model: str) -> LADD:
    """The distillation of a model of `MODELS`, without parameters."""
    return objectives.ladd(typed(sd3_turbo.get_config(f"size={MODELS[model]}")))


def state_leaves(objective: LADD, sizes: dict[str, int]) -> list[Leaf]:
    """All arrays of the training state and of the teacher, laid on a mesh of these sizes."""
    shape = mesh_shape(sizes, math.prod(sizes.values()))
    mesh: Any = AbstractMesh(tuple(shape.values()), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))
    shapes, shardings = state_layout(objective, mesh)
    teacher = objective.critic.teacher
    frozen = parameter_shardings(mesh, teacher.shapes, teacher.axes)
    leaves = []
    for prefix, tree, laid in (("", shapes, shardings), ("teacher/", teacher.shapes, frozen)):
        named, _ = jax.tree_util.tree_flatten_with_path(tree)
        for (path, array), sharding in zip(named, jax.tree.leaves(laid), strict=True):
            name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
            leaves.append(_leaf(name, array, sharding))
    return leaves


def _leaf(name: str, array: Any, sharding: Any) -> Leaf:
    tree, _, path = name.partition("/")
    for moment in ("mu", "nu"):
        # Positions in the chain of Optax's transformations say nothing to a reader.
        before, found, after = path.partition(f"/{moment}/")
        if found:
            tree, path = f"{tree}/{moment}", after
    item = array.dtype.itemsize
    return Leaf(
        tree,
        path,
        tuple(array.shape),
        tuple(sharding.spec),
        math.prod(array.shape) * item,
        math.prod(sharding.shard_shape(array.shape)) * item,
    )


def table(leaves: list[Leaf]) -> str:
    """One line an array: path, shape, mesh axes of its dimensions, bytes on a device."""
    trees: dict[str, list[str]] = defaultdict(list)
    for leaf in leaves:
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        spec = ", ".join("+".join(e) if isinstance(e, tuple) else str(e or "-") for e in leaf.spec)
        trees[leaf.tree].append(f"{leaf.path or leaf.tree}  {shape}  ({spec})  {leaf.local}")
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for tree, lines in trees.items():
        alike[tuple(lines)].append(tree)
    total = sum(leaf.local for leaf in leaves)
    whole = sum(leaf.local for leaf in leaves if leaf.replicated)
    parts = [f"bytes a device: {total}, of arrays that every device has whole: {whole}"]
    for lines, names in alike.items():
        parts.append("\n".join([f"[{', '.join(names)}]", *lines]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Writes all files."""
    FOLDER.mkdir(exist_ok=True)
    for model in MODELS:
        objective = objective_of(model)
        for mesh, sizes in MESHES.items():
            (FOLDER / f"{model}.{mesh}.txt").write_text(table(state_leaves(objective, sizes)))


if __name__ == "__main__":
    main()

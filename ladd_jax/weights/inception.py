"""Inception's weights as pytorch-fid and torch-fidelity publish them."""

from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

from ladd_jax.errors import NotFoundError
from ladd_jax.models.base import Model, Params
from ladd_jax.models.inception import inception
from ladd_jax.paths import expand, near
from ladd_jax.weights.files import Tensor, read_headers
from ladd_jax.weights.layout import Tree, kernel, same
from ladd_jax.weights.torch_file import read_state_dict
from ladd_jax.weights.transfer import check_tensors, load


def load_inception(path: Path | str, mesh: Mesh | None = None) -> tuple[Model, Params]:
    """FID's Inception-v3.

    Args:
      path: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid,
        `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, which has the same tensors,
        or these as `.safetensors`, for which PyTorch is not needed.
      mesh: mesh to put the parameters on, a copy on each device.

    Returns:
      the network and its parameters.

    Raises:
      NotFoundError: there is no such file.
      UserError: the file is damaged, or belongs to another network.
    """
    file = expand(path)
    if not file.is_file():
        raise NotFoundError(
            f"no file {file}{near(file)}: give the weights of FID's Inception, such as "
            "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        )
    tensors: Mapping[str, Tensor] = (
        read_headers([file])[0] if file.suffix == ".safetensors" else read_state_dict(file)
    )
    network = inception()
    layout = _layout(network.shapes)
    # The classifier, which features do not need, and batch norm's step counters.
    ignored = frozenset(
        name for name in tensors if name.startswith("fc.") or name.endswith("num_batches_tracked")
    )
    check_tensors(file, tensors, layout, network.shapes, ignored)
    return network, load(tensors, layout, network.shapes, network.axes, mesh)


def _layout(shapes: Params, name: str = "") -> Tree:
    if "kernel" in shapes:
        return {
            "kernel": kernel(f"{name}.conv.weight"),
            "scale": same(f"{name}.bn.weight"),
            "bias": same(f"{name}.bn.bias"),
            "mean": same(f"{name}.bn.running_mean"),
            "variance": same(f"{name}.bn.running_var"),
        }
    return {
        part: _layout(inner, f"{name}.{part}" if name else part) for part, inner in shapes.items()
    }

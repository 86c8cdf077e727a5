"""Weights pickled by PyTorch, for networks that are published in no other form."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ladd_jax.errors import NotFoundError, UserError, brief


@dataclasses.dataclass(frozen=True)
class HeldTensor:
    """A tensor in memory, with the interface of `weights.files.Tensor`.

    Attributes:
      name: the tensor's name.
      array: its values.
    """

    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def check(self) -> None:
        """Does nothing: a tensor in memory can always be read."""

    def map(self) -> np.ndarray:
        """The tensor."""
        return self.array


def read_state_dict(path: Path) -> dict[str, HeldTensor]:
    """The tensors of a state dict by name. Nothing else in the file is unpickled.

    Args:
      path: file written by `torch.save(module.state_dict(), path)`, in the old or the new format.

    Raises:
      NotFoundError: there is no such file.
      UserError: PyTorch is not installed, or the file holds anything but tensors by name.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}: check the path")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"only PyTorch can read {path}, and it is not installed: `pip install torch`, or "
            "convert the file to .safetensors elsewhere"
        ) from error
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle can raise almost any exception.
    except Exception as error:
        reason = brief(error)
        raise UserError(f"{path} is not a PyTorch state dict ({reason}): get it again") from error
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise UserError(
            f"{path} holds more than tensors by name: save only the network's state_dict()"
        )
    return {name: HeldTensor(name, tensor.numpy()) for name, tensor in state.items()}

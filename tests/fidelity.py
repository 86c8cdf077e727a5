"""torch-fidelity without torchvision, which the parts compared with do not use.

The torchvision of PyPI cannot be imported beside PyTorch's CPU build.
"""

import sys
import types

import pytest

pytest.importorskip("torch")

_PARTS = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)


class _Absent(types.ModuleType):
    """A module whose every name is an empty class, good to inherit from and nothing else."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_fidelity():
    """The package, imported while stand-ins take torchvision's place; skips where it is absent."""
    added = [name for name in _PARTS if name not in sys.modules]
    for name in added:
        sys.modules[name] = _Absent(name)
        parent, _, child = name.rpartition(".")
        if parent in added:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        return pytest.importorskip("torch_fidelity")
    finally:
        # Others ask whether torchvision is there.
        for name in added:
            del sys.modules[name]


torch_fidelity = import_fidelity()

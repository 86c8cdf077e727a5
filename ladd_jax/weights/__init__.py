"""Weights of released models: read onto a mesh, and written as the same files."""

import importlib
from typing import Any

_PLACES = {
    "LoadedMMDiT": "ladd_jax.models.sd3.weights",
    "load_autoencoder": "ladd_jax.models.sd3.encoder_weights",
    "load_mmdit": "ladd_jax.models.sd3.weights",
    "load_text_encoders": "ladd_jax.models.sd3.encoder_weights",
    "read_mmdit_config": "ladd_jax.models.sd3.weights",
    "save_mmdit": "ladd_jax.models.sd3.weights",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    # The model families import this package, so their names are imported only on first use.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)

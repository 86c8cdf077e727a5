"""Weights of released models: read onto a mesh, and written as the same files."""

from ladd_jax.weights.encoders import load_autoencoder, load_text_encoders
from ladd_jax.weights.mmdit import LoadedMMDiT, load_mmdit, read_mmdit_config, save_mmdit

__all__ = [
    "LoadedMMDiT",
    "load_autoencoder",
    "load_mmdit",
    "load_text_encoders",
    "read_mmdit_config",
    "save_mmdit",
]

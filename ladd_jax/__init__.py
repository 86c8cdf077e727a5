"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015) in JAX.

The names here are what a program that uses the library starts from. They are imported on first use,
since importing JAX takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladd_jax.config import Config, base_config, typed
    from ladd_jax.diffusion.sampling import Sampler, Sampling
    from ladd_jax.errors import UserError
    from ladd_jax.objectives.ladd import LADD
    from ladd_jax.weights import load_autoencoder, load_mmdit, load_text_encoders, save_mmdit

__version__ = "0.1.0"

__all__ = [
    "LADD",
    "Config",
    "Sampler",
    "Sampling",
    "UserError",
    "base_config",
    "load_autoencoder",
    "load_mmdit",
    "load_text_encoders",
    "save_mmdit",
    "typed",
]

_MODULES = {
    "ladd_jax.config": ("Config", "base_config", "typed"),
    "ladd_jax.diffusion.sampling": ("Sampler", "Sampling"),
    "ladd_jax.errors": ("UserError",),
    "ladd_jax.objectives.ladd": ("LADD",),
    "ladd_jax.weights": ("load_autoencoder", "load_mmdit", "load_text_encoders", "save_mmdit"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

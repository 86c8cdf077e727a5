"""What a run is told to do: fields with their defaults, and the config that a workdir keeps."""

from ladd_jax.config.arguments import parse_arguments
from ladd_jax.config.fields import Config, base_config, typed
from ladd_jax.config.recipes import large_recipe, learn_real_pictures, small_recipe
from ladd_jax.errors import UserError

__all__ = [
    "Config",
    "UserError",
    "base_config",
    "large_recipe",
    "learn_real_pictures",
    "parse_arguments",
    "small_recipe",
    "typed",
]

"""What a run is told to do: fields with their defaults, and the config that a workdir keeps."""

from ladd_jax.config.fields import base_config, parse_arguments
from ladd_jax.errors import UserError

__all__ = ["UserError", "base_config", "parse_arguments"]

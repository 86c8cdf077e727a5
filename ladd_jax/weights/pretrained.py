"""Tokenizers and processors of pictures, which `transformers` reads from a model's folder."""

from pathlib import Path
from typing import Any

from ladd_jax.errors import DamagedError, brief


def read_pretrained(name: str, directory: str | Path, **options: Any) -> Any:
    """What a class of `transformers` reads from a folder, without asking the hub.

    Args:
      name: the class, such as `AutoTokenizer`.
      directory: the folder.
      **options: further arguments of its `from_pretrained`.

    Raises:
      DamagedError: it cannot be read.
    """
    # It takes seconds to import.
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(directory, **options)
    # It parses files of several kinds, each with errors of its own.
    except Exception as error:
        reason = brief(error).rstrip(".")
        raise DamagedError(
            f"{name} cannot read {directory} ({reason}): get its files again, or run "
            f"`git lfs pull` where it was cloned"
        ) from error

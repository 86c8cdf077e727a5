"""Tokenizers and image processors, which `transformers` reads from a model's folder."""

from pathlib import Path
from typing import Any

from ladd_jax.errors import DamagedError, brief


def read_pretrained(name: str, directory: str | Path, **options: Any) -> Any:
    """The object that a class of `transformers` reads from a folder, without asking the hub.

    Args:
      name: name of the class, such as `AutoTokenizer`.
      directory: the folder to read.
      **options: further arguments of the class's `from_pretrained`.

    Raises:
      DamagedError: it cannot be read.
    """
    # Imported only here, because it takes seconds.
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(directory, **options)
    # It parses several file formats, each with exceptions of its own.
    except Exception as error:
        reason = brief(error).rstrip(".")
        raise DamagedError(
            f"{name} cannot read {directory} ({reason}): get its files again, or run "
            f"`git lfs pull` where it was cloned"
        ) from error

"""Checks of one file of records, and of the values of one record."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from ladd_jax.errors import UserError

LARGEST = 65504.0
"""Largest number of float16. No autoencoder, encoder or picture has values beyond it."""


def count_records(path: Path) -> int:
    """Number of records in a file; 0 if it is empty, cut or not a file of records."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    # The library has one type for everything that can be wrong with a file.
    except RuntimeError:
        return 0


_ENDS = 4096


def fingerprint(path: Path) -> str:
    """A hexadecimal digest that tells a file of records from others, by its size and both ends.

    Riegeli keeps a hash of the whole first record at the start of a file. So files of the same
    prompts with different seeds differ there.

    Args:
      path: a file of records that is whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(-min(_ENDS, size), os.SEEK_END)
        digest.update(file.read(_ENDS))
    return digest.hexdigest()


def check_values(arrays: Mapping[str, np.ndarray], key: str, prompt: str) -> None:
    """Refuses values that no training could use.

    Args:
      arrays: arrays of a record by name, in the dtype that is stored.
      key: name of the record.
      prompt: its prompt.

    Raises:
      UserError: a value is not finite, or larger than `LARGEST`.
    """
    for name, array in arrays.items():
        # The comparison is negated because every comparison with NaN is false.
        wrong = ~(np.abs(array) <= LARGEST)
        if wrong.any():
            value = array[wrong].flat[0]
            raise UserError(
                f"record {key} ({prompt[:60]!r}) has {value:g} in {name}, and values are to be "
                f"finite and at most {LARGEST:g}: look at its source and at the network that made "
                f"it, or use a text_dtype of float32 where float16 overflows"
            )

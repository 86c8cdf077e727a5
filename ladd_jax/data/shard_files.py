"""What can be wrong with one file of records, and with the values of one record."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from ladd_jax.errors import UserError

LARGEST = 65504.0
"""Largest number of float16. No autoencoder, encoder or picture has such values."""


def count_records(path: Path) -> int:
    """Records of a file; 0 where it is empty, cut or no file of records."""
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return int(reader.num_records())
        finally:
            reader.close()
    # The library has one type for all that can be wrong with a file.
    except RuntimeError:
        return 0


_ENDS = 4096


def fingerprint(path: Path) -> str:
    """Tells a file of records from every other, in hexadecimal, by its size and its two ends.

    At the start Riegeli keeps a hash of all of the first record. So files of the same prompts
    differ if they are of other seeds.

    Args:
      path: a whole file of records.
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
        # Not by comparing values themselves: of NaN nothing is true.
        wrong = ~(np.abs(array) <= LARGEST)
        if wrong.any():
            value = array[wrong].flat[0]
            raise UserError(
                f"record {key} ({prompt[:60]!r}) has {value:g} in {name}, and values are to be "
                f"finite and at most {LARGEST:g}: look at its source and at the network that made "
                f"it, or use a text_dtype of float32 where float16 overflows"
            )

"""Archives of arrays are read whole, or named with what is wrong with them."""

import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ladd_jax.data import archives
from ladd_jax.errors import DamagedError, UserError


def saved(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(header, data=b""):
    """A member that says of itself what a header holds."""
    text = header.encode().ljust(118) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
        )
    return file.getvalue()


WHOLE = saved(a=np.arange(3), b=np.ones((2, 2), np.float32))


def test_arrays_come_back_by_name(tmp_path):
    (tmp_path / "x.npz").write_bytes(WHOLE)
    found = archives.read(tmp_path / "x.npz", "mend it")
    np.testing.assert_array_equal(found["a"], np.arange(3))
    assert found.keys() == {"a", "b"} and found["b"].dtype == np.float32


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PK", WHOLE[:-9], WHOLE[:191] + b"\xff" + WHOLE[192:], saved(a=np.array([{}])),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, }"), npy("("),
        npy("{'descr': 'nothing', 'fortran_order': False, 'shape': (2,), }"),
        b"\x93NUMPY\x01\x00",
    ],
)  # fmt: skip
def test_what_is_damaged_or_a_pickle_is_named(tmp_path, data):
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DamagedError, match=r"x\.npz is damaged \(.+\): mend it"):
        archives.read(tmp_path / "x.npz", "mend it")


def test_memory_that_runs_out_is_no_damage(tmp_path):
    zeros = np.zeros(2**27, np.uint8)
    np.savez_compressed(tmp_path / "x.npz", small=np.arange(3), large=zeros)
    del zeros
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, before[1]))
    try:
        with pytest.raises(UserError, match=r"x\.npz holds large of 0\.13 GB, .*: end ") as caught:
            archives.read(tmp_path / "x.npz", "mend it")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not isinstance(caught.value, DamagedError)


def test_one_array_is_no_archive(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(DamagedError, match="it is one array and not an archive"):
        archives.read(tmp_path / "x.npz", "mend it")

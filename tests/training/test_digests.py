"""A digest tells a changed array from the one that was, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training import digests as module
from ladd_jax.training.digests import digests

ARRAYS = {
    "scalar": jnp.int32(3),
    "flag": jnp.array(True),
    "floats": jnp.linspace(-1, 1, 48, dtype=jnp.float32).reshape(4, 3, 4),
    "halves": jnp.linspace(-1, 1, 48, dtype=jnp.bfloat16).reshape(8, 6),
    "bytes": jnp.arange(-4, 4, dtype=jnp.int8),
    "nothing": jnp.zeros((0, 3)),
}


def test_parts_on_other_devices_have_the_digests_of_the_whole():
    for sizes in ({"fsdp": -1}, {"data": 2, "fsdp": 2}):
        mesh = make_mesh(sizes, jax.devices()[:4])
        for name in ("floats", "halves", "bytes"):
            array = ARRAYS[name]
            laid = jax.device_put(array, NamedSharding(mesh, PartitionSpec("fsdp")))
            assert digests({name: laid}) == digests({name: array})


def test_large_arrays_are_summed_by_a_program_to_the_same(monkeypatch):
    small = digests(ARRAYS)
    monkeypatch.setattr(module, "_LARGE", 0)
    assert digests(ARRAYS) == small


@pytest.mark.parametrize("name", ["floats", "halves", "bytes"])
def test_any_flipped_bit_and_any_exchange_shows(name):
    array = np.asarray(ARRAYS[name])
    before = digests({name: jnp.asarray(array)})
    for byte in range(array.nbytes):
        changed = np.frombuffer(array.tobytes(), np.uint8).copy()
        changed[byte] ^= 1 << byte % 8
        changed = jnp.asarray(changed.view(array.dtype).reshape(array.shape))
        assert digests({name: changed}) != before
    assert digests({name: jnp.asarray(array[::-1])}) != before

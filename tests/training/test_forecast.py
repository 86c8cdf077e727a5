"""What a compiled step tells of memory and communication."""

import jax
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.compile import (
    contents,
    largest_batch,
    memory_refused,
    parameter_shapes,
    shard_bytes,
)
from ladd_jax.planning.hlo import Collective

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def gather(shape, dimension, axes=("fsdp",)):
    return Collective("all-gather", axes, (shape,), dimension, 1, 0.0)


def test_a_gathered_parameter_is_told_from_a_gathered_batch():
    parameters = parameter_shapes(tiny.ladd())
    width, images = 32, 3
    block = (1, width, 3, 2, width // 2)  # Queries, keys and values of one layer.
    assert contents(gather(block, 1), parameters, MESH, images) == "parameters"
    tokens = (images * 4, 8, width)
    assert contents(gather(tokens, 0), parameters, MESH, images) == "batch"
    tokens = (images * 8, 8, width)
    assert contents(gather(tokens, 0, ("data", "fsdp")), parameters, MESH, images) == "batch"
    assert contents(gather((5, 7), 0), parameters, MESH, images) == "other"
    gradient = Collective("all-reduce", ("fsdp",), ((width * 3, width), ()), -1, 1, 0.0)
    assert contents(gradient, parameters, MESH, images) == "parameters"


def test_memory_is_a_line_in_the_batch():
    points = {16: 10.0, 32: 14.0}
    assert largest_batch(points, 20.0, 16) == 48
    assert largest_batch(points, 7.0, 16) == 0


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (73.5G) exceeds available HBM (15.75G).",
            (73.5 * 2**30, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 900M of 800M hbm.",
            (900 * 2**20, 800 * 2**20),
        ),
        ("INTERNAL: Mosaic failed to compile", None),
    ],
)
def test_the_compilers_refusal_tells_how_much_was_wanted(message, sizes):
    assert memory_refused(message) == sizes


def test_a_shard_is_the_part_of_an_array_on_one_chip():
    mesh = make_mesh(MESH)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = [
        jax.ShapeDtypeStruct((16, 4), "float32", sharding=sharding),
        jax.ShapeDtypeStruct((3,), "bfloat16", sharding=whole),
    ]
    assert shard_bytes(tree) == 2 * 4 * 4 + 3 * 2

"""What a collective moves is told by its shapes."""

import tiny

from ladd_jax.planning.collectives import Collective, contents, parameter_shapes

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

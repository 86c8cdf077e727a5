"""Meshes and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.parallel.mesh import (
    batch_rows,
    batch_sharding,
    check_batch_size,
    make_mesh,
    mesh_shape,
    parameter_shardings,
    partition_spec,
)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_minus_one_takes_the_devices_that_are_left(a, b, rest):
    assert mesh_shape({"data": a, "fsdp": -1, "tensor": b}, a * b * rest) == {
        "data": a, "fsdp": rest, "tensor": b,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 4, "fsdp": 4}, "needs 16 devices and there are 8"),
        ({"data": 3, "fsdp": -1}, "does not fill 8 devices"),
        ({"data": 2}, "does not fill 8 devices"),
        ({"data": -1, "fsdp": -1}, "data and fsdp are both -1"),
        ({"data": 0}, "data has size 0"),
        ({"model": 2}, "'model' is not one of data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_can_not_be_is_named(sizes, words):
    with pytest.raises(ValueError, match=words):
        mesh_shape(sizes, 8)


@pytest.mark.parametrize(
    ("sizes", "hosts", "rows"),
    [
        ({"data": 8}, 2, [range(8), range(8, 16)]),
        ({"data": 2, "fsdp": 4}, 4, [range(4), range(4, 8), range(8, 12), range(12, 16)]),
        # Hosts that hold parts of the same features read the same rows.
        ({"data": 2, "tensor": 4}, 4, [range(8), range(8), range(8, 16), range(8, 16)]),
        ({"tensor": 8}, 2, [range(16), range(16)]),
    ],
)
def test_a_host_reads_the_rows_that_its_devices_hold(sizes, hosts, rows):
    mesh = make_mesh(sizes)
    for devices, wanted in zip(np.split(np.array(jax.devices()), hosts), rows, strict=True):
        np.testing.assert_array_equal(batch_rows(mesh, 16, list(devices)), wanted)
    np.testing.assert_array_equal(batch_rows(mesh, 16), range(16))


def test_a_batch_that_does_not_divide_names_its_neighbours():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check_batch_size(8, mesh)
    words = r"batch_size 6 is not divisible by 4 \(data=2 x fsdp=2\): use 4 or 8"
    with pytest.raises(ValueError, match=words):
        check_batch_size(6, mesh)


def test_two_dimensions_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match="'mlp' and 'heads' .* both lie on mesh axis 'tensor'"):
        partition_spec(("mlp", "heads"))


def test_an_axis_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="'experts' has no rule"):
        partition_spec(("experts",))


def test_every_parameter_of_the_transformer_is_sharded_where_it_divides():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = mmdit(tiny.mmdit_config(depth=3, dual_attention=(0,), qk_norm=True))
    shardings = parameter_shardings(mesh, model.shapes, model.axes)
    block = shardings["blocks_1"]["image"]
    assert block["qkv"]["kernel"].spec == PartitionSpec(None, "fsdp", None, "tensor", None)
    assert block["mlp"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    large = [
        sharding.spec
        for leaf, sharding in zip(
            jax.tree.leaves(model.shapes), jax.tree.leaves(shardings), strict=True
        )
        if np.prod(leaf.shape) >= 32 * 32
    ]
    assert large and all(any(entry for entry in spec) for spec in large)


@pytest.fixture(scope="module")
def small():
    """(model, parameters, latents, loss, its gradient and the velocity on one device)."""
    model = mmdit(tiny.mmdit_config(depth=3, dual_attention=(0,), qk_norm=True))
    params = tiny.random_params(model)
    batch = tiny.batch(height=4, width=4)
    arguments = (jnp.linspace(0.2, 0.9, tiny.B), batch["cond"])

    def loss(params, latents):
        v = model(params, latents, *arguments)
        return jnp.sum(v**2), v

    alone = jax.jit(jax.grad(loss, has_aux=True))(params, batch["latents"])
    return model, params, batch["latents"], loss, alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 4, "tensor": 2},
        {"data": 4, "tensor": 2},
    ],
    ids=lambda sizes: "x".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_each_sample_is_the_same_on_every_mesh(small, sizes):
    # Left to itself, XLA's partitioner hands the samples of two devices each other's attention.
    model, params, latents, loss, (one, alone) = small
    mesh = make_mesh(sizes)
    shardings = parameter_shardings(mesh, model.shapes, model.axes)
    latents = jax.device_put(latents, batch_sharding(mesh))
    sharded = jax.device_put(params, shardings)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss, has_aux=True), out_shardings=(shardings, None))
        several, many = gradient(sharded, latents)
    np.testing.assert_allclose(many, alone, atol=1e-5)
    assert tiny.max_difference(jax.device_get(several), one) < 1e-5

"""Low-rank adapters of a network: what they compute, and what is trained of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.errors import UserError
from ladd_jax.models.lora import BASE, Adapted, LoRA
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.parallel.mesh import make_mesh, parameter_shardings

# A second attention in some blocks, and norms of queries and keys: SD3.5-Medium's parts.
CONFIG = tiny.mmdit_config(depth=3, qk_norm=True, dual_attention=(0,))
EVERYWHERE = LoRA(rank=3, alpha=6.0, layers=("*",))


def inputs():
    batch = tiny.batch(size=2)
    return batch["latents"], jnp.asarray([0.3, 0.9]), batch["cond"]


def adapted(lora=EVERYWHERE):
    """An adapted network, adapters without zeros, and the frozen trees."""
    network = Adapted(mmdit(CONFIG), lora)
    return network, tiny.random_params(network, seed=1), {BASE: tiny.random_params(network.base)}


def layers_of(tree, path=()):
    """(path, layer) of all dense layers in a tree of parameters."""
    for name, inner in tree.items():
        if isinstance(inner, dict):
            if "kernel" in inner:
                yield (*path, name), inner
            yield from layers_of(inner, (*path, name))


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_an_adapted_network_begins_as_the_frozen_one():
    network, _, frozen = adapted()
    fresh = network.begin(jax.random.PRNGKey(0), frozen[BASE])
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(lambda leaf: leaf.shape, network.shapes)
    v = network(network.complete(fresh, frozen), *inputs())
    np.testing.assert_array_equal(v, network.base(frozen[BASE], *inputs()))
    downs = [leaf for path, leaf in jax.tree.leaves_with_path(fresh) if "down" in str(path[-1])]
    assert all(0 < jnp.max(jnp.abs(leaf)) <= leaf.shape[-3] ** -0.5 for leaf in downs)


def test_merged_it_computes_the_same_without_adapters():
    network, params, frozen = adapted()
    merged = network.merge(params, frozen[BASE], jnp.float32)
    v = network(network.complete(params, frozen), *inputs())
    np.testing.assert_allclose(network.base(merged, *inputs()), v, atol=2e-5)
    assert float(jnp.max(jnp.abs(v - network.base(frozen[BASE], *inputs())))) > 0.1


def test_the_kernel_of_each_part_gets_a_product_of_its_own():
    network, params, frozen = adapted()
    merged = network.merge(params, frozen[BASE], jnp.float32)
    where = ("blocks_0", "image", "qkv")
    kernel, change = (at(tree, where)["kernel"][0] for tree in (frozen[BASE], merged))
    down, up = (at(params, where)["low_rank"][name][0] for name in ("down", "up"))
    for part in range(3):
        expected = kernel[:, part] + 2.0 * np.tensordot(down[:, part], up[part], 1)
        np.testing.assert_allclose(change[:, part], expected, atol=1e-6)


def test_adapters_get_their_part_of_the_kernels_gradient():
    network, params, frozen = adapted()
    cotangent = jax.random.normal(jax.random.PRNGKey(3), inputs()[0].shape)

    def loss(params):
        return jnp.sum(cotangent * network(network.complete(params, frozen), *inputs()))

    found = jax.jit(jax.grad(loss))(params)
    merged = network.merge(params, frozen[BASE], jnp.float32)
    whole = jax.jit(jax.grad(lambda params: jnp.sum(cotangent * network.base(params, *inputs()))))(
        merged
    )
    # W + s A B: the gradient of A is s dW B^T, that of B is s A^T dW.
    checked = 0
    for path, layer in layers_of(whole):
        down, up = (at(params, path)["low_rank"][name] for name in ("down", "up"))
        down, up = np.asarray(down), np.asarray(up)
        by_part = np.asarray(layer["kernel"]).reshape(*down.shape[:-1], -1)
        flat = up.reshape(*up.shape[: down.ndim - 1], -1)
        expected = {
            "down": 2.0 * np.einsum("...ipo,...pro->...ipr", by_part, flat),
            "up": 2.0 * np.einsum("...ipr,...ipo->...pro", down, by_part).reshape(up.shape),
        }
        assert tiny.gradient_difference(at(found, path)["low_rank"], expected) < 1e-4
        checked += 1
    assert checked == len(list(layers_of(frozen[BASE])))


def test_patterns_choose_the_layers():
    network = Adapted(mmdit(CONFIG), LoRA(rank=2, layers=("*/image/qkv", "final")))
    names = {"/".join(path) for path, _ in layers_of(network.base.shapes)}
    chosen = {name for name in names if name.endswith("/image/qkv")} | {"final"}
    found = {
        "/".join(str(key.key) for key in path[:-2])
        for path, _ in jax.tree.leaves_with_path(network.shapes)
    }
    assert found == chosen and len(chosen) == 4
    with pytest.raises(UserError, match="layers has qvk, which does not match any dense layer"):
        Adapted(mmdit(CONFIG), LoRA(rank=2, layers=("qvk",)))


def test_adapters_are_sharded_like_other_parameters():
    network = Adapted(mmdit(tiny.mmdit_config(width=64)), LoRA(rank=8, layers=("*block*",)))
    mesh = make_mesh({"fsdp": 8})
    shardings = parameter_shardings(mesh, network.shapes, network.axes)
    for path, sharding in jax.tree.leaves_with_path(shardings):
        assert "fsdp" in sharding.spec, path
    frozen = {BASE: tiny.random_params(network.base)}
    params = tiny.random_params(network, seed=1)
    expected = network(network.complete(params, frozen), *inputs())
    with jax.set_mesh(mesh):
        laid = jax.device_put(params, shardings)
        v = jax.jit(lambda p, f: network(network.complete(p, f), *inputs()))(laid, frozen)
    np.testing.assert_allclose(v, expected, atol=2e-5)


def test_no_layers_are_refused():
    with pytest.raises(UserError, match="name layers"):
        LoRA(rank=2, layers=())


@pytest.mark.parametrize("changes", [{"own_share": 0.5}, {"accumulation": 2}])
def test_a_step_trains_the_adapters_as_their_share_of_the_whole(changes):
    whole = tiny.ladd(tiny.mmdit_config(depth=1), **changes)
    network = Adapted(whole.student, LoRA(rank=2, layers=("*",)))
    objective = dataclasses.replace(whole, student=network)
    assert objective.forward_units[0] == whole.forward_units[0] - 1
    state, frozen = tiny.ladd_state(whole)
    frozen |= {BASE: state.params}
    assert set(objective.networks) == set(frozen)
    start = objective.init(jax.random.PRNGKey(3), state.params)
    state = whole.init(jax.random.PRNGKey(3), state.params)
    step = jax.jit(objective.step)
    after, metrics = step(start, frozen, tiny.batch())
    _, expected = tiny.step(whole)(state, frozen, tiny.batch())
    # The same pictures, judged the same: the two differ in what is trained alone.
    for name in ("loss/generator", "loss/discriminator", "gradient_norm/heads", "x0_hat_std"):
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-4)
    # B starts at zero, so that at first it alone has a gradient.
    moved = {
        str(path[-1].key): float(jnp.max(jnp.abs(new - old)))
        for (path, new), old in zip(
            jax.tree.leaves_with_path(after.params), jax.tree.leaves(start.params), strict=True
        )
    }
    assert moved["up"] > 0 and moved["down"] == 0
    again, _ = step(after, frozen, tiny.batch(seed=1))
    both = zip(jax.tree.leaves(again.params), jax.tree.leaves(after.params), strict=True)
    assert all(np.any(new != old) for new, old in both)

"""A teacher in int8 is half as large and pulls the student the same way."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec

from configs import digits
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import typed
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.optimizers import Optimizer


class Recording:
    """An optimizer whose state is the gradient."""

    def build(self):
        return optax.trace(0.0)


def teachers(mesh=None, **changes):
    """(objective with its teacher in float32, its parameters, the same in int8)."""
    from ladd_jax.models.quantized import quantize_params

    config = tiny.mmdit_config(width=64, qk_norm=True, **changes)
    # Heads that stay: the first update of Adam is the sign of a gradient, which rounding turns.
    objective = tiny.ladd(config, optimizer=Recording(), heads_optimizer=Optimizer(0.0))
    small = mmdit(dataclasses.replace(config, quantized=True))
    params = tiny.random_params(objective.critic.teacher, scale=1.0)
    mesh = mesh or make_mesh({}, jax.devices()[:1])
    return objective, params, small, quantize_params(small, params, mesh)


def test_a_kernel_is_off_by_half_a_step_of_its_channel_at_most():
    pytest.importorskip("qwix")
    from ladd_jax.models.quantized import dequantize, quantize

    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((16, 3, 4)) * np.geomspace(1e-3, 1e3, 12).reshape(3, 4)
    # A channel of zeros has a scale that divides.
    kernel[:, 0, 0] = 0
    values, scale = quantize(jnp.asarray(kernel, jnp.float32), 0)
    assert (values.dtype, values.shape, scale.shape) == (jnp.int8, (16, 3, 4), (3, 4))
    error = np.abs(dequantize(values, scale) - kernel)
    assert np.all(error <= np.max(np.abs(kernel), axis=0) / 127 / 2 * 1.001)


def test_every_layer_of_a_stack_has_its_own_scales():
    pytest.importorskip("qwix")
    _, params, small, quantized = teachers(depth=3, dual_attention=(0, 2))
    assert jax.tree.map(jnp.shape, quantized) == jax.tree.map(jnp.shape, small.shapes)
    assert jax.tree.map(lambda x: x.dtype, quantized) == jax.tree.map(
        lambda x: x.dtype, small.shapes
    )
    for name in ("blocks_0", "blocks_1", "last_block"):
        up = quantized[name]["image"]["mlp"]["up"]
        largest = np.max(np.abs(params[name]["image"]["mlp"]["up"]["kernel"]), axis=-2)
        np.testing.assert_allclose(up["scale"], largest / 127.5, rtol=1e-5)
    # What is not a kernel of a block stays as it is.
    np.testing.assert_array_equal(quantized["final"]["kernel"], params["final"]["kernel"])


def test_the_kernels_take_half_the_memory_of_bfloat16():
    config = tiny.mmdit_config(depth=4, width=128, param_dtype=jnp.bfloat16)

    def size(config):
        blocks = {n: t for n, t in mmdit(config).shapes.items() if "block" in n}
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(blocks))

    assert size(dataclasses.replace(config, quantized=True)) < 0.53 * size(config)


@pytest.mark.slow
def test_the_gradient_of_the_student_goes_through_an_int8_teacher():
    pytest.importorskip("qwix")
    objective, params, small, quantized = teachers()
    state, _ = tiny.ladd_state(objective)
    gradients = []
    for teacher, frozen in ((objective.critic.teacher, params), (small, quantized)):
        critic = dataclasses.replace(objective.critic, teacher=teacher)
        other = dataclasses.replace(objective, critic=critic)
        after, _ = tiny.step(other)(state, {"teacher": frozen}, tiny.batch())
        gradients.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(after.optimizer)]))
    whole, other = gradients
    norms = [np.linalg.norm(gradient) for gradient in gradients]
    assert whole @ other / np.prod(norms) > 0.99
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.05)
    # And it is another teacher.
    assert np.max(np.abs(whole - other)) > 1e-6


def test_int8_kernels_lie_on_the_mesh_as_the_others_do():
    pytest.importorskip("qwix")
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    objective, params, small, quantized = teachers(mesh)
    up = quantized["blocks_0"]["image"]["mlp"]["up"]
    assert up["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert up["scale"].sharding.spec == PartitionSpec(None, "tensor")
    _, _, _, alone = teachers()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(quantized), jax.device_get(alone))


def test_int8_is_under_the_heads_alone(monkeypatch):
    config = digits.get_config()
    config.model.teacher_dtype = "int8"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    whole, frozen = (
        architectures.generator_architecture(typed(config)),
        architectures.teacher_architecture(typed(config)),
    )
    assert (whole.quantized, whole.param_dtype) == (False, jnp.bfloat16)
    assert (frozen.quantized, frozen.param_dtype) == (True, jnp.bfloat16)
    assert not architectures.student_architecture(typed(config)).quantized
    config.model.teacher_dtype = "int4"
    with pytest.raises(ValueError, match="'int4' is not one of float32, bfloat16, int8"):
        objectives.ladd(typed(config))


def test_without_qwix_int8_is_one_sentence(monkeypatch):
    config = digits.get_config()
    config.model.teacher_dtype = "int8"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need qwix, .*run pip install ladd_jax\[int8\]"):
        objectives.ladd(typed(config))

"""Layers whose gradient is written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.models.layers import gelu_tanh


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_gelu_and_its_derivative_are_those_of_jax(dtype, tolerance):
    x = jnp.linspace(-12, 12, 2001).astype(dtype)
    exact = x.astype(jnp.float32)
    value, derivative = jax.jvp(gelu_tanh, (x,), (jnp.ones_like(x),))
    expected, slope = jax.jvp(jax.nn.gelu, (exact,), (jnp.ones_like(exact),))
    assert value.dtype == derivative.dtype == dtype
    np.testing.assert_allclose(value.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(derivative.astype(jnp.float32), slope, atol=tolerance)


def test_gelus_gradient_keeps_one_array():
    x = jnp.linspace(-3, 3, 1000)
    _, vjp = jax.vjp(gelu_tanh, x)
    assert [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.size > 1] == [x.shape]

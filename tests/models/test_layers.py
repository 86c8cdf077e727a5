"""Layers whose gradient is written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.models.layers import gelu_tanh


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_gelu_and_its_derivative_are_those_of_its_formula(dtype, tolerance):
    x = jnp.linspace(-12, 12, 2001).astype(dtype)
    value, derivative = jax.jvp(gelu_tanh, (x,), (jnp.ones_like(x),))
    # In float64: in float32 the tanh of the formula has no digits left below -5.
    y = np.asarray(x.astype(jnp.float32), np.float64)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * y**2)
    assert value.dtype == derivative.dtype == dtype
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(value.astype(jnp.float32), 0.5 * y * (1 + tanh))
    close(derivative.astype(jnp.float32), 0.5 * (1 + tanh) + 0.5 * y * (1 - tanh**2) * inner)


def test_gelus_gradient_keeps_one_array():
    x = jnp.linspace(-3, 3, 1000)
    _, vjp = jax.vjp(gelu_tanh, x)
    assert [leaf.shape for leaf in jax.tree.leaves(vjp) if leaf.size > 1] == [x.shape]

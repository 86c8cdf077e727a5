"""Layers whose gradient is written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.models.layers import gelu_tanh, layer_norm, modulated_norm


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


def _plain(x, shift, scale):
    return layer_norm(x) * (1 + scale[:, None]) + shift[:, None]


def _tokens(dtype):
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    shapes = ((2, 7, 64), (2, 64), (2, 64), (2, 7, 64))
    # Tokens of a deep network are far from zero mean.
    return [
        3 + jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    ]


def test_modulated_norm_has_the_value_and_gradients_of_autodiff():
    *arguments, cotangent = _tokens(jnp.float32)
    value, vjp = jax.vjp(modulated_norm, *arguments)
    expected, expected_vjp = jax.vjp(_plain, *arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for found, right in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


def test_modulated_norm_in_bfloat16_is_near_that_in_float32():
    *arguments, cotangent = _tokens(jnp.bfloat16)
    value, vjp = jax.vjp(modulated_norm, *arguments)
    wide = [a.astype(jnp.float32) for a in (*arguments, cotangent)]
    expected, expected_vjp = jax.vjp(_plain, *wide[:3])
    pairs = [(value, expected), *zip(vjp(cotangent), expected_vjp(wide[3]), strict=True)]
    for found, right in pairs:
        assert found.dtype == jnp.bfloat16
        difference = jnp.linalg.norm(found.astype(jnp.float32) - right)
        assert difference < 0.01 * jnp.linalg.norm(right)


def test_modulated_norms_gradient_keeps_the_tokens_alone():
    x, shift, scale, _ = _tokens(jnp.bfloat16)
    _, vjp = jax.vjp(modulated_norm, x, shift, scale)
    large = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, x.dtype)]


def test_modulated_norm_can_be_differentiated_twice():
    *arguments, cotangent = _tokens(jnp.float32)

    def penalty(norm):
        def total(x):
            return jnp.sum(norm(x, *arguments[1:]) * cotangent)

        return jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(total)(x))))(arguments[0])

    np.testing.assert_allclose(penalty(modulated_norm), penalty(_plain), rtol=1e-3, atol=1e-3)

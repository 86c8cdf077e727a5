"""XLA's options for programs."""

import jax
import jax.numpy as jnp
import pytest

from ladd_jax.parallel.compiler_options import compiler_options, forward_options


@pytest.mark.parametrize("device_kind", ["NVIDIA H200", "cpu"])
def test_xla_knows_the_options(device_kind, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    # XLA refuses a name that it does not know, whatever it compiles for.
    options = compiler_options(device_kind)
    assert options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(jnp.zeros(())) == 1


def test_on_a_cpu_the_users_own_level_counts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert compiler_options("cpu") == forward_options("cpu") == {}


def test_a_tpu_has_no_options():
    assert compiler_options("TPU v5p") == forward_options("TPU v5p") == {}

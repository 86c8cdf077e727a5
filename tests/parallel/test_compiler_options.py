"""XLA's options for a step's program."""

import jax
import jax.numpy as jnp

from ladd_jax.parallel.compiler_options import compiler_options


def test_xla_knows_the_options_for_gpus():
    # XLA refuses a name that it does not know, whatever it compiles for.
    options = compiler_options("NVIDIA H200")
    assert options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(jnp.zeros(())) == 1


def test_other_devices_have_no_options():
    assert compiler_options("TPU v5p") == compiler_options("cpu") == {}

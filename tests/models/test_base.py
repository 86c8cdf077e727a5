"""NNX modules as functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import mmdit_config

from ladd_jax.models.base import next_key, param, parameter_count
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.models.stack import stack


def test_axes_and_shapes_are_trees_like_the_parameters():
    model = mmdit(mmdit_config(dual_attention=(0,), qk_norm=True))
    params = model.init(jax.random.PRNGKey(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, model.shapes)
    jax.tree.map(
        lambda leaf, axes: pytest.fail() if leaf.ndim != len(axes) else 0, params, model.axes
    )
    assert parameter_count(model) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_axes_must_name_every_dimension():
    with pytest.raises(ValueError, match="do not name the 2 dimensions"):
        param(nnx.Rngs(0), (2, 3), jax.nn.initializers.zeros, ("embed",), jnp.float32)


def test_keys_are_those_that_nnx_draws():
    def draws(draw):
        rngs = nnx.Rngs(7)
        return [jax.random.key_data(draw(rngs)) for _ in range(3)]

    ours, theirs = draws(next_key), draws(lambda rngs: rngs.params())
    assert np.array_equal(ours, theirs)
    assert np.array_equal(jax.jit(lambda: draws(next_key))(), theirs)


def test_stacked_modules_start_from_different_parameters():
    class Cell(nnx.Module):
        def __init__(self, rngs):
            normal = jax.nn.initializers.normal(1.0)
            self.kernel = param(rngs, (4,), normal, (None,), jnp.float32)

    kernels = stack(Cell, 3, nnx.Rngs(0)).kernel[...]
    assert kernels.shape == (3, 4)
    assert float(jnp.min(jnp.std(kernels, axis=0))) > 0


def test_sd3_medium_has_its_two_billion_parameters():
    medium = MMDiTConfig(depth=24, width=1536, num_heads=24)
    assert parameter_count(mmdit(medium)) == 2_028_328_000

"""The stored position table: read as numbers that give it again, or refused."""

import diffusers_mmdit as reference
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from ladd_jax.models.sd3.positions import position_embedding
from ladd_jax.weights import load_mmdit, read_mmdit_config, save_mmdit

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write(tmp_path, table, **changes):
    """A transformer with this position table."""
    theirs = reference.transformer(depth=1, table=int(table.shape[1] ** 0.5), **changes)
    theirs.pos_embed.pos_embed.data = table
    return reference.save(theirs.to(table.dtype), tmp_path / "t")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("side", "base", "start"), [(192, 48, -16), (384, 96, -40), (64, 16, 0)])
def test_the_table_of_released_models_is_recognised(dtype, side, base, start, tmp_path):
    table = reference.released_positions(side, 32).to(dtype)
    config = read_mmdit_config(write(tmp_path, table, heads=4), jnp.float32)
    assert (config.position_table, config.position_base, config.position_start) == (
        side, base, start,
    )  # fmt: skip
    ours = position_embedding(side, side, config).reshape(1, side * side, 32)
    rounding = {torch.float32: 2e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
    np.testing.assert_allclose(ours, table.float().numpy(), atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("side", "sample"), [(192, 128), (384, 128), (96, 64), (6, 8), (1, 8)])
def test_the_table_that_diffusers_makes_is_recognised(dtype, side, sample, tmp_path):
    theirs = reference.transformer(depth=1, table=side, sample_size=sample).to(dtype)
    config = read_mmdit_config(reference.save(theirs, tmp_path / "t"), jnp.float32)
    assert config.position_start == 0
    if side > 1:
        assert config.position_base == sample // 2


def test_the_same_table_is_written(tmp_path):
    table = reference.released_positions(8, 16)
    loaded = load_mmdit(write(tmp_path, table), jnp.float32)
    save_mmdit(tmp_path / "again", loaded.params, loaded.config, jnp.float32)
    file = tmp_path / "again/diffusion_pytorch_model.safetensors"
    written = safetensors.torch.load_file(file)["pos_embed.pos_embed"]
    np.testing.assert_allclose(written, table, atol=1e-5)


def test_the_network_uses_the_table_of_the_file(tmp_path):
    theirs = reference.transformer(depth=1, table=8)
    theirs.pos_embed.pos_embed.data = reference.released_positions(8, 16)
    inputs = reference.inputs(theirs, rows=5, columns=2)
    loaded = load_mmdit(reference.save(theirs, tmp_path / "t"), jnp.float32)
    with torch.no_grad():
        expected = reference.velocity(theirs, *inputs).numpy()
    np.testing.assert_allclose(loaded(*inputs), expected, atol=1e-5 * np.max(np.abs(expected)))


def noise(table):
    return table + 0.02 * torch.randn(table.shape)


def one_value(table):
    table[0, 17, 5] += 0.1
    return table


def rows_for_columns(table):
    side = int(table.shape[1] ** 0.5)
    grid = table.reshape(side, side, -1)
    return grid.transpose(0, 1).reshape(table.shape).contiguous()


def not_a_number(table):
    table[0, -1, -1] = torch.nan
    return table


@pytest.mark.parametrize(
    "change", [noise, one_value, rows_for_columns, not_a_number, torch.zeros_like]
)
def test_another_table_is_an_error_that_names_it(change, tmp_path):
    torch.manual_seed(0)
    path = write(tmp_path, change(reference.released_positions(8, 16)))
    with pytest.raises(ValueError, match=r"pos_embed\.pos_embed .* trained positions"):
        load_mmdit(path)

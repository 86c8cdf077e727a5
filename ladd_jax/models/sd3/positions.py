"""Sincos positions of image tokens, which we compute and which files store as a table.

S side of the table in patches, D width.
"""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.weights.files import StoredTensor

if TYPE_CHECKING:
    # Only for types, since the network's module imports this one.
    from ladd_jax.models.sd3.transformer import MMDiTConfig

_STEP = 1 / 8
"""Base and start are rounded to multiples of this, which undoes the rounding of tables in half
precision."""


def _tolerance(dtype: np.dtype) -> float:
    """Twice the rounding error of a dtype near 1, and at least that of bfloat16."""
    return float(max(jnp.finfo(dtype).eps, jnp.finfo(jnp.bfloat16).eps))


def axis_embedding(length: int, config: "MMDiTConfig") -> jax.Array:
    """A centred crop of the 1-D sincos table: float32 `[length, D/2]`, sines then cosines."""
    quarter = config.width // 4
    frequencies = 10_000.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    table = config.position_table
    places = (table - length) // 2 + jnp.arange(length, dtype=jnp.float32)
    positions = config.position_start + places * (config.position_base / table)
    angles = positions[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def position_embedding(rows: int, columns: int, config: "MMDiTConfig") -> jax.Array:
    """A centred crop of the 2-D sincos table: float32 `[rows, columns, D]`, in patches.

    The first half of the features holds sin and cos of the column, the second of the row.
    """
    table = config.position_table
    if max(rows, columns) > table:
        raise UserError(
            f"a grid of {rows}x{columns} patches exceeds the position table of {table}x{table}: "
            f"use a smaller bucket or a larger position_table"
        )
    shape = (rows, columns, config.width // 2)
    return jnp.concatenate(
        [
            jnp.broadcast_to(axis_embedding(columns, config)[None], shape),
            jnp.broadcast_to(axis_embedding(rows, config)[:, None], shape),
        ],
        axis=-1,
    )


def table_side(tensor: StoredTensor) -> int:
    """S of a stored table `[1, S^2, D]`.

    Raises:
      UserError: it has another shape.
    """
    if len(tensor.shape) == 3 and tensor.shape[0] == 1:
        side = math.isqrt(tensor.shape[1])
        if side and side**2 == tensor.shape[1]:
            return side
    raise UserError(
        f"tensor {tensor.name} in {tensor.file} has shape {list(tensor.shape)}: "
        f"a position table is [1, S^2, D]"
    )


def fit_positions(tensor: StoredTensor) -> tuple[float, float]:
    """`position_base` and `position_start` of a stored table, from its first row.

    Any table gives some result; `check_positions` tells whether it is right.

    Raises:
      UserError: it does not have the shape of a position table, or a dtype that is not supported.
    """
    tensor.check()
    side = table_side(tensor)
    quarter = tensor.shape[2] // 4
    if quarter == 0:
        return 0.0, 0.0
    row = np.asarray(tensor.map()[0, :side, : 2 * quarter], np.float64)

    angles = np.arctan2(row[:, :quarter], row[:, quarter:])
    # The last feature has the longest period. Each one before it gives the same position more
    # exactly, but only up to a period, which the estimate so far resolves.
    places = np.unwrap(angles[:, -1]) * 10_000.0 ** ((quarter - 1) / quarter)
    for feature in reversed(range(quarter - 1)):
        frequency = 10_000.0 ** (-feature / quarter)
        turns = np.round((places * frequency - angles[:, feature]) / (2 * np.pi))
        places = (angles[:, feature] + 2 * np.pi * turns) / frequency
    if not np.all(np.isfinite(places)):
        return 0.0, 0.0
    # Fitted to all places together, so that their rounding errors average out.
    unit, start = np.polyfit(np.arange(side), places, 1) if side > 1 else (1.0, places[0])
    # Adding 0.0 turns -0.0 into 0.0.
    base, first = (float(np.round(x / _STEP) * _STEP) + 0.0 for x in (unit * side, start))
    return base, first


def check_positions(tensor: StoredTensor, config: "MMDiTConfig") -> None:
    """Raises UserError if a stored table is not the one that the network computes."""
    side = config.position_table
    axis = np.asarray(axis_embedding(side, config))
    half = axis.shape[1]
    worst = np.float32(0)
    for row in range(side):
        stored = np.asarray(tensor.map()[0, row * side : (row + 1) * side], np.float32)
        # np.maximum, since unlike max it propagates NaNs.
        worst = np.maximum(worst, np.max(np.abs(stored[:, :half] - axis)))
        worst = np.maximum(worst, np.max(np.abs(stored[:, half:] - axis[row])))
    if not worst <= _tolerance(tensor.dtype):
        raise UserError(
            f"tensor {tensor.name} in {tensor.file} is not the sincos table that the network "
            f"computes (closest: position_base {config.position_base:g}, position_start "
            f"{config.position_start:g}; they differ by up to {worst:.2g}): a model with trained "
            f"positions cannot be loaded"
        )


def position_table(config: "MMDiTConfig", dtype: np.dtype) -> np.ndarray:
    """The whole table `[1, S^2, D]`, as it is stored."""
    side = config.position_table
    axis = np.asarray(axis_embedding(side, config)).astype(dtype)
    table = np.empty((side, side, config.width), dtype)
    table[..., : axis.shape[1]] = axis
    table[..., axis.shape[1] :] = axis[:, None]
    return table.reshape(1, side * side, config.width)

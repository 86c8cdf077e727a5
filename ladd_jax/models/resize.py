"""Bicubic resizing as a product with two constant matrices, in the two forms that PyTorch has.

B batch, H W grid, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel of Keys (1981), zero from a distance of 2."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def bicubic_matrix(inputs: int, outputs: int, *, antialias: bool) -> np.ndarray:
    """The matrix that resizes a row of `inputs` pixels to `outputs`, float32 `[outputs, inputs]`.

    Args:
      inputs: number of pixels in the row.
      outputs: number of pixels to make.
      antialias: whether to resize like Pillow, with a kernel with a = -0.5 that gets wider as the
        row gets shorter and ignores what is beyond the edge. Otherwise a is -0.75 and the pixel at
        the edge is repeated. Both are modes of `torch.nn.functional.interpolate`, without
        `align_corners`.
    """
    scale = inputs / outputs
    centers = (np.arange(outputs) + 0.5) * scale - 0.5
    matrix = np.zeros((outputs, inputs))
    if antialias:
        width = max(scale, 1.0)
        matrix = _cubic((np.arange(inputs) - centers[:, None]) / width, -0.5)
        matrix /= matrix.sum(axis=1, keepdims=True)
        return matrix.astype(np.float32)
    first = np.floor(centers).astype(int) - 1
    for places in (first + i for i in range(4)):
        weights = _cubic(places - centers, -0.75)
        np.add.at(matrix, (np.arange(outputs), np.clip(places, 0, inputs - 1)), weights)
    return matrix.astype(np.float32)


def bicubic(x: jax.Array, height: int, width: int, *, antialias: bool) -> jax.Array:
    """Resizes a batch of grids, `[B, H, W, C] -> float32 [B, height, width, C]`.

    Args:
      x: the grids; if they have that size already, their values do not change.
      height: number of rows to make.
      width: number of columns to make.
      antialias: see `bicubic_matrix`.
    """
    x = x.astype(jnp.float32)
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] != size:
            matrix = jnp.asarray(bicubic_matrix(x.shape[axis], size, antialias=antialias))
            # By default accelerators multiply in bfloat16, which is coarser than a picture's bytes.
            resized = jnp.tensordot(x, matrix, ((axis,), (1,)), precision="highest")
            x = jnp.moveaxis(resized, -1, axis)
    return x

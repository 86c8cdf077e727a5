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
    """What makes a row of `outputs` pixels of one of `inputs`, float32 `[outputs, inputs]`.

    Args:
      inputs: pixels that there are.
      outputs: pixels to make.
      antialias: whether the kernel, of a = -0.5, gets wider as the row gets shorter and leaves out
        what is beyond the edge, as pictures are resized by Pillow; otherwise a is -0.75 and the
        pixel at the edge is repeated. Both are `torch.nn.functional.interpolate`'s, without
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
    """A batch of grids in another size, `[B, H, W, C] -> float32 [B, height, width, C]`.

    Args:
      x: the grids; one of that size already is as it was.
      height: rows to make.
      width: columns to make.
      antialias: see `bicubic_matrix`.
    """
    x = x.astype(jnp.float32)
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] != size:
            matrix = jnp.asarray(bicubic_matrix(x.shape[axis], size, antialias=antialias))
            # Accelerators multiply in bfloat16 by default, which is coarser than a picture's bytes.
            resized = jnp.tensordot(x, matrix, ((axis,), (1,)), precision="highest")
            x = jnp.moveaxis(resized, -1, axis)
    return x

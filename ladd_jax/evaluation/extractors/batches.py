"""Runs arrays of any length through a network, in batches of one fixed size on a mesh."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.images import to_bytes
from ladd_jax.models.base import Params
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, lay, replicated


class Batched:
    """A network's function of arrays, with one compiled program for each of their shapes.

    It computes in full float32, even where accelerators would use fewer bits for products by
    default, because statistics of features are compared across machines.
    """

    def __init__(
        self, function: Callable[..., jax.Array], params: Params, mesh: Mesh, batch_size: int
    ):
        """Prepares the network.

        Args:
          function: `function(params, *arrays) -> [batch, ...]`, independent along the batch.
          params: the network's parameters, on the mesh.
          mesh: mesh whose `data` and `fsdp` axes the batch is sharded over.
          batch_size: rows of every call; rounded up to a multiple of the size of those axes.
        """
        self._params, self._mesh = params, mesh
        self._batch = -(-batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
        # Replicated outputs give each process all rows, including those of other processes.
        self._program = jax.jit(function, out_shardings=replicated(mesh))

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The function's values `[n, ...]` for arrays `[n, ...]`, n at least 1."""
        sharding = batch_sharding(self._mesh)
        outputs = []
        for start in range(0, len(arrays[0]), self._batch):
            parts = [array[start : start + self._batch] for array in arrays]
            padded = [lay(np.resize(p, (self._batch, *p.shape[1:])), sharding) for p in parts]
            with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
                output = self._program(self._params, *padded)
            outputs.append(np.asarray(output)[: len(parts[0])])
        return np.concatenate(outputs)


def rgb_bytes(images: np.ndarray) -> np.ndarray:
    """Pictures as image files hold them, uint8 `[n, H, W, 3]`, for which metrics were defined.

    Args:
      images: float `[n, H, W, 1 or 3]` in [-1, 1]; values outside are clipped.
    """
    pixels = to_bytes(images)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))

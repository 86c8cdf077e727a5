"""Arrays of any length through a network, in batches of one fixed size on a mesh."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.images import to_bytes
from ladd_jax.models.base import Params
from ladd_jax.parallel.mesh import batch_divisor, batch_sharding, lay, replicated


class Batched:
    """A network's function of arrays, one program for each of their shapes.

    It computes in full float32 where accelerators would take fewer bits for products by default:
    statistics of features are compared across machines.
    """

    def __init__(
        self, function: Callable[..., jax.Array], params: Params, mesh: Mesh, batch_size: int
    ):
        """Prepares the network.

        Args:
          function: `function(params, *arrays) -> [batch, ...]`, independent along the batch.
          params: its parameters, on the mesh.
          mesh: the batch lies on its `data` and `fsdp` axes.
          batch_size: rows of every call; raised to a multiple of those axes.
        """
        self._params, self._mesh = params, mesh
        self._batch = -(-batch_size // batch_divisor(mesh)) * batch_divisor(mesh)
        # Each process gets all rows, those of other processes' devices too.
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
    """Pictures as image files hold them, uint8 `[n, H, W, 3]`, and as metrics were defined on them.

    Args:
      images: float `[n, H, W, 1 or 3]` in [-1, 1]; what lies outside is clipped.
    """
    pixels = to_bytes(images)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))

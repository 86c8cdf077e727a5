"""What is planned: a config's distillation step on a mesh of chips."""

import dataclasses
import math

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ladd_jax.data.buckets import Bucket
from ladd_jax.objectives.ladd import LADD
from ladd_jax.parallel.chips import Chip
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.planning.compile import Compiled, compile_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned.

    Attributes:
      config: the run's config.
      objective: the objective that it describes.
      chip: what each device of the mesh is.
      mesh: devices that need not be here.
      utilisation: share of the slowest roofline that the expected speed reaches.
    """

    config: ConfigDict
    objective: LADD
    chip: Chip
    mesh: Mesh
    utilisation: float = 0.5

    @property
    def chips(self) -> int:
        """Number of chips of the mesh."""
        return math.prod(self.mesh.shape.values())

    @property
    def divisor(self) -> int:
        """What a global batch must be divisible by."""
        return batch_divisor(self.mesh) * self.objective.accumulation

    def batch_shapes(self, bucket: Bucket, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a global batch, by name, as the shards of the config give it."""
        data = self.config.data
        return {
            "latents": (batch_size, bucket.height, bucket.width, self.config.model.channels),
            "context": (batch_size, data.text_length, data.text_width),
            "pooled": (batch_size, data.pooled_width),
        }

    def compiled(self, bucket: Bucket, batch_size: int) -> Compiled:
        """The step compiled for one bucket."""
        shapes = self.batch_shapes(bucket, batch_size)
        return compile_step(self.objective, self.mesh, self.chip, shapes)

"""What is planned: a config's distillation step on a mesh of chips."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.architectures import student_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import noise_keys_shape
from ladd_jax.models.families import family_of
from ladd_jax.objectives.base import StudentObjective
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

    config: Config
    objective: StudentObjective
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

    def batch_shapes(self, bucket: Bucket, batch_size: int) -> dict[str, Any]:
        """A global batch as the shards of the config give it, as `jax.ShapeDtypeStruct`."""
        config = self.config
        shapes = {
            "latents": (bucket.height, bucket.width, config.model.channels),
            "cond": family_of(config).cond_shapes(
                student_architecture(config), bucket.height, bucket.width, config.data.text_length
            ),
        }
        batch = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct((batch_size, *shape), np.float32),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        if self.objective.reads_noise_keys:
            batch |= {"noise_keys": noise_keys_shape(batch_size)}
        return batch

    def compiled(self, bucket: Bucket, batch_size: int) -> Compiled:
        """The step compiled for one bucket."""
        shapes = self.batch_shapes(bucket, batch_size)
        return compile_step(self.objective, self.mesh, self.chip, shapes)

"""What is planned: the step of one of a config's trainings on a mesh of chips."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.config.pretraining import settings_of
from ladd_jax.config.record_shapes import record_shapes
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import noise_keys_shape
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.objectives.base import Objective
from ladd_jax.parallel.chips import Chip
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.planning.compile import Compiled, compile_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned.

    Attributes:
      config: the run's config.
      objective: the objective of the training.
      chip: the chip that each device of the mesh is.
      mesh: mesh of devices, which need not be here.
      utilisation: share of the slowest roofline that the expected speed reaches.
      training: name of the training whose step is planned, one of `TRAININGS`.
    """

    config: Config
    objective: Objective
    chip: Chip
    mesh: Mesh
    utilisation: float = 0.5
    training: str = "distil"

    @property
    def chips(self) -> int:
        """Number of chips of the mesh."""
        return math.prod(self.mesh.shape.values())

    @property
    def divisor(self) -> int:
        """What a global batch must be divisible by."""
        return batch_divisor(self.mesh) * self.objective.accumulation

    @property
    def steps(self) -> int:
        """Steps of the training."""
        return settings_of(self.config, self.training).steps

    def batch_shapes(self, bucket: Bucket, batch_size: int) -> dict[str, Any]:
        """A global batch as the shards of the config give it, as `jax.ShapeDtypeStruct`."""
        cond = {
            name: jax.ShapeDtypeStruct((batch_size, *shape), np.float32)
            for name, shape in record_shapes(self.config, self.training, bucket).items()
        }
        batch: dict[str, Any] = {"latents": cond.pop(LATENTS), "cond": cond}
        if self.objective.reads_noise_keys:
            batch |= {"noise_keys": noise_keys_shape(batch_size)}
        return batch

    def compiled(self, bucket: Bucket, batch_size: int) -> Compiled:
        """The step compiled for one bucket."""
        shapes = self.batch_shapes(bucket, batch_size)
        return compile_step(self.objective, self.mesh, self.chip, shapes)

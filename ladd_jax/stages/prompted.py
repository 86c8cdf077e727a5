"""A trained model with its encoded prompts, which makes pictures of any seeds and steps.

A picture depends only on its prompt and its seed, and not, except for rounding, on the batch size.
Two models whose latents have the same shape begin from the same noise.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.errors import UserError
from ladd_jax.models.base import CHANNELS
from ladd_jax.names import counted
from ladd_jax.parallel.mesh import batch_divisor
from ladd_jax.stages.conditions import Conditions, check_text, null_of
from ladd_jax.stages.encode import report_cut
from ladd_jax.stages.given import Given
from ladd_jax.stages.trained import TrainedModel

_LOG = logging.getLogger(__name__)


MOST_PICTURES = 10**6
"""Of one command."""


def check_count(prompts: int, num: int) -> None:
    """Raises UserError where pictures are more than a command makes, of each prompt `num`."""
    if prompts * num > MOST_PICTURES:
        raise UserError(
            f"--num={num} of {counted(prompts, 'prompt')} are {prompts * num} pictures and a "
            f"command makes {MOST_PICTURES}: use a smaller --num, and another --seed for the rest"
        )


class Picture(NamedTuple):
    """A picture to make.

    Attributes:
      prompt: index of its prompt.
      seed: seed of its noise.
    """

    prompt: int
    seed: int


class Prompted:
    """A network in memory, and its encoded prompts.

    Attributes:
      params: parameters of the network.
    """

    def __init__(self, trained: TrainedModel, prompts: Sequence[str], mesh: Mesh, batch_size: int):
        """Encodes the prompts, and then reads the network.

        Args:
          trained: the model that is sampled.
          prompts: prompts, none of them empty.
          mesh: the mesh that `trained` was opened for.
          batch_size: pictures at once; rounded up to a multiple of what the mesh needs.

        Raises:
          UserError: a prompt does not fit the text encoder, or the network reads what nothing
            gives.
        """
        # The encoders are freed before the transformer is read, since accelerators may not have
        # room for both.
        _LOG.info("sample: reading the text encoder, to encode %s", counted(len(prompts), "prompt"))
        encoder = trained.encoder()
        self._cond, self._count = encoder.encode(prompts), len(prompts)
        null = {name: array[0] for name, array in encoder.encode([""]).items()}
        check_text(trained, null)
        null |= null_of(trained)
        report_cut(encoder)
        del encoder
        _LOG.info("sample: reading the network")
        self._trained = trained
        self.params = trained.load()
        network = trained.family.backbone(trained.architecture)
        self._sampler = Sampler(network, null, mesh, batch_size)
        self._chunk = -(-batch_size // batch_divisor(mesh)) * batch_divisor(mesh)

    def pictures(
        self,
        sampling: Sampling,
        bucket: Bucket,
        jobs: Sequence[Picture],
        given: Given | None = None,
        conditions: Conditions | None = None,
    ) -> Iterator[tuple[Picture, np.ndarray]]:
        """Makes pictures, one batch after another.

        Args:
          sampling: steps, guidance and schedule.
          bucket: shape of the latents.
          jobs: the pictures to make.
          given: the pictures that come with all prompts. They are joined to x_t or, for a network
            that reads no picture, are what samples start from, and then `sampling` must be made for
            it. None for prompts alone.
          conditions: values of its other conditions, for all prompts; None for their defaults.

        Yields:
          each job, in order, with its picture `[H, W, 1 or 3]` in [-1, 1].
        """
        shape = (bucket.height, bucket.width, self._trained.architecture.out_channels)
        if conditions is None:
            conditions = Conditions(self._trained, bucket, [{}] * self._count)
        for first in range(0, len(jobs), self._chunk):
            part = jobs[first : first + self._chunk]
            rows = [job.prompt for job in part]
            # As objects: of NumPy's numbers large seeds would be rounded to one another.
            keys = seeds(0, np.array([job.seed for job in part], object))
            own = {name: array[rows] for name, array in self._cond.items()}
            own |= conditions.arrays(rows)
            x_0 = None if given is None else np.stack([given.channels(row) for row in rows])
            if self._trained.reads_picture and x_0 is not None:
                own[CHANNELS], x_0 = x_0, None
            latents = self._sampler(self.params, keys, own, shape, sampling, x_0=x_0)
            for job, latent in zip(part, latents, strict=True):
                picture = self._trained.pictures.decode(latent)
                yield job, picture if given is None else given.finished(job.prompt, picture)

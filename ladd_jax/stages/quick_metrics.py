"""Metrics of a student in training on a few samples, meant for curves and not for tables."""

from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shard_sets import LATENTS
from ladd_jax.data.shards import Shards
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.metrics.edits import EDIT_ERROR
from ladd_jax.evaluation.seen import Seen
from ladd_jax.stages.judging import Edits, Show, edits_of, look_at, open_judge

_LOG = getLogger(__name__)

_METRICS = ("fd", "alignment", EDIT_ERROR, "deviation", "outside")

Sample = Callable[[Bucket, dict[str, np.ndarray]], np.ndarray]
"""`sample(bucket, cond)` gives latents, with one sample for each row of the cond."""


class QuickMetrics:
    """Compares a student's samples with the records that have the same prompts.

    The records are those that training reads. With synthesized data these are the data generator's
    samples and not true edits, so there is no `edit_error`. The stage `evaluate` compares with
    held-out samples instead, and with more of them.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        shards: Shards,
        buckets: Sequence[Bucket],
        mesh: Mesh,
        show: Show,
    ):
        """Reads the records; the extractor is only opened by the first call.

        Args:
          config: the run's config.
          workdir: the run's workdir.
          shards: the shards that training reads.
          buckets: buckets that are measured.
          mesh: mesh that the extractor runs on.
          show: turns latents into pictures for the extractor.
        """
        self._config, self._workdir, self._mesh, self._show = config, workdir, mesh, show
        count = max(2, config.log.quick_samples // len(buckets))
        self._records = {
            bucket: shards.read(bucket, np.arange(min(count, shards.sizes[bucket])))
            for bucket in buckets
        }
        self._prompts = {
            bucket: np.array(records["prompt"]) for bucket, records in self._records.items()
        }
        self._metrics = [
            name for name in _METRICS if name != EDIT_ERROR or config.distil.data == "encoded"
        ]
        self._edits: dict[Bucket, Edits] | None = None
        self._judge: tuple[Extractor, list[Seen]] | None = None
        self._given_up = False

    def __call__(self, ways: Mapping[int, Sample]) -> dict[str, float]:
        """Metrics over all buckets, `preview/METRIC/STEPS`; empty if samples are not finite.

        Args:
          ways: functions that make samples, by the number of steps.

        Raises:
          UserError: the extractor that the config names cannot be opened.
        """
        if self._judge is None and not self._given_up:
            self._open()
        if self._judge is None:
            return {}
        extractor, reference = self._judge
        values: dict[str, float] = {}
        for steps, sample in ways.items():
            samples = {
                bucket: sample(bucket, records["cond"]) for bucket, records in self._records.items()
            }
            if not all(np.isfinite(latents).all() for latents in samples.values()):
                return {}
            seen = self._look(extractor, samples)
            for name in self._metrics:
                value = METRICS[name].measure(seen, reference)
                if value is not None:
                    values[f"preview/{name}/{steps}"] = float(value)
        return values

    def _open(self) -> None:
        try:
            extractor = open_judge(self._config, self._workdir, self._mesh)
        except UserError as error:
            # An extractor that the user did not name must not end a training.
            if self._config.evaluate.extractor:
                raise
            _LOG.warning("distil: no quick metrics: %s", error)
            self._given_up = True
            return
        data = {bucket: records[LATENTS] for bucket, records in self._records.items()}
        beside = edits_of(
            self._config, {b: (own["cond"], data[b]) for b, own in self._records.items()}
        )
        self._edits = beside and {
            bucket: Edits(self._show(own.sources), self._show(own.truths))
            for bucket, own in beside.items()
        }
        self._judge = extractor, self._look(extractor, data)

    def _look(self, extractor: Extractor, latents: Mapping[Bucket, Any]) -> list[Seen]:
        pictures = {bucket: self._show(part) for bucket, part in latents.items()}
        return look_at(extractor, pictures, self._prompts, edits=self._edits)

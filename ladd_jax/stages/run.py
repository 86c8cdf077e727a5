"""Runs all stages of a run, in order."""

import logging
from pathlib import Path

from ladd_jax.config.fields import STAGES, Config
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import evaluate
from ladd_jax.stages.flow_matching import finetune, pretrain
from ladd_jax.stages.prefer import prefer
from ladd_jax.stages.synthesize import synthesize

_LOG = logging.getLogger(__name__)


def run_stages(config: Config, workdir: Path) -> None:
    """Runs the stages of a config; finished ones are skipped, and stopped ones resumed.

    Args:
      config: the run's config.
      workdir: the run's workdir, prepared by `cli.begin`.
    """
    stages = {
        "encode": encode,
        "pretrain": pretrain,
        "prefer": prefer,
        "synthesize": synthesize,
        "finetune": finetune,
        "distil": distil,
        "evaluate": evaluate,
    }
    for name in STAGES:
        # A training with 0 steps does nothing.
        steps = getattr(getattr(config, name, None), "steps", None)
        if name in config.stages and steps != 0:
            _LOG.info("stage %s", name)
            stages[name](config, workdir)

"""All stages of a run, in their order."""

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
    """Runs the stages that a config has; one that is done is skipped, one that was stopped goes on.

    Args:
      config: the run's config.
      workdir: the run's workdir, which has begun: see `cli.begin`.
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
        # One of no steps does nothing.
        steps = getattr(getattr(config, name, None), "steps", None)
        if name in config.stages and steps != 0:
            _LOG.info("stage %s", name)
            stages[name](config, workdir)

"""`python -m ladd_jax.main --config=FILE --workdir=DIR`: all stages, from data to report.

A stage that is done is skipped, one that was stopped goes on.
"""

import logging
from pathlib import Path

from ladd_jax.cli.run import run
from ladd_jax.config.fields import STAGES, Config
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import evaluate
from ladd_jax.stages.flow_matching import finetune, pretrain
from ladd_jax.stages.synthesize import synthesize

_LOG = logging.getLogger(__name__)

_STAGES = {
    "encode": encode,
    "pretrain": pretrain,
    "synthesize": synthesize,
    "finetune": finetune,
    "distil": distil,
    "evaluate": evaluate,
}


def main(config: Config, workdir: Path) -> None:
    """Runs the stages of the config, in their order."""
    for name in STAGES:
        if name in config.stages:
            _LOG.info("stage %s", name)
            _STAGES[name](config, workdir)


if __name__ == "__main__":
    run(main)

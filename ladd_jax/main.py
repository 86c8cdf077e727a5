"""`python -m ladd_jax.main --config=FILE --workdir=DIR`: all stages, from data to report.

A stage that is done is skipped, one that was stopped goes on.

Examples:

    python -m ladd_jax.main --config=digits --workdir=runs/digits
    python -m ladd_jax.main --config=small:data=pictures,resolution=32 --workdir=runs/small
    python -m ladd_jax.main --config=digits --config.distil.steps=400 --workdir=runs/short
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ladd_jax.cli.run import run

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config

# As of a command this module's name is another.
_LOG = logging.getLogger("ladd_jax.main")


def main(config: Config, workdir: Path) -> None:
    """Runs the stages of the config, in their order."""
    from ladd_jax.config.fields import STAGES
    from ladd_jax.stages.distil import distil
    from ladd_jax.stages.encode import encode
    from ladd_jax.stages.evaluate import evaluate
    from ladd_jax.stages.flow_matching import finetune, pretrain
    from ladd_jax.stages.synthesize import synthesize

    stages = {
        "encode": encode,
        "pretrain": pretrain,
        "synthesize": synthesize,
        "finetune": finetune,
        "distil": distil,
        "evaluate": evaluate,
    }
    for name in STAGES:
        if name in config.stages:
            _LOG.info("stage %s", name)
            stages[name](config, workdir)


if __name__ == "__main__":
    run(main)

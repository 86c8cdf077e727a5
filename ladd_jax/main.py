"""`python -m ladd_jax.main --config=FILE --workdir=DIR`: all stages, from data to report.

Each stage is skipped where it is done and goes on where it was stopped.
"""

import logging
from pathlib import Path

from ml_collections import ConfigDict

from ladd_jax import command, evaluate, stages
from ladd_jax.config import STAGES, ConfigError
from ladd_jax.encode import encode
from ladd_jax.parallel.mesh import check_batch_size, make_mesh
from ladd_jax.synthesize import synthesize

_LOG = logging.getLogger(__name__)

_STAGES = {
    "encode": encode,
    "pretrain": stages.pretrain,
    "synthesize": synthesize,
    "distil": stages.distil,
    "evaluate": evaluate.main,
}


def main(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of the config, in their order."""
    unknown = [name for name in config.stages if name not in _STAGES]
    if unknown:
        raise ConfigError(f"stage {unknown[0]!r} is none of {', '.join(STAGES)}")
    # What later stages would trip over is found before the first one starts.
    mesh = make_mesh(config.mesh)
    for stage in ("pretrain", "distil"):
        if stage in config.stages:
            check_batch_size(config[stage].batch_size, mesh)
    for name in STAGES:
        if name in config.stages:
            _LOG.info("stage %s", name)
            _STAGES[name](config, workdir)


if __name__ == "__main__":
    command.run(main)

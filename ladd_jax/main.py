"""`python -m ladd_jax.main --config=FILE --workdir=DIR`: all stages, from data to report.

A stage that is done is skipped, and one that was stopped goes on.

Examples:

    python -m ladd_jax.main --config=digits --workdir=runs/digits
    python -m ladd_jax.main --config=small:data=pictures,resolution=32 --workdir=runs/small
    python -m ladd_jax.main --config=digits --config.distil.steps=400 --workdir=runs/short
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ladd_jax.cli.run import run

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config


def main(config: Config, workdir: Path) -> None:
    """Runs the stages of the config, in their order."""
    from ladd_jax.stages.run import run_stages

    run_stages(config, workdir)


if __name__ == "__main__":
    run(main)

"""`python -m ladd_jax.synthesize --config=FILE --workdir=DIR`: the data generator's samples.

Examples:

    python -m ladd_jax.synthesize --config=digits --workdir=runs/digits
    python -m ladd_jax.synthesize --config=sd3_turbo:weights=sd35,data=p.txt --workdir=runs/turbo

in workdirs in which the stages before it are done.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ladd_jax.cli.run import run

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config


def main(config: Config, workdir: Path) -> None:
    """Runs the stage."""
    from ladd_jax.stages.synthesize import synthesize

    synthesize(config, workdir)


if __name__ == "__main__":
    run(main, stage="synthesize")

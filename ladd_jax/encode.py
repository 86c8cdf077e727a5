r"""`python -m ladd_jax.encode --config=FILE --workdir=DIR`: raw data to latent shards.

Examples:

    python -m ladd_jax.encode --config=digits --workdir=runs/digits
    python -m ladd_jax.encode --config=sd3_turbo --weights=DIR --prompts=prompts.txt \
        --workdir=runs/sd3_turbo
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ladd_jax.cli.run import run

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config


def main(config: Config, workdir: Path) -> None:
    """Runs the stage."""
    from ladd_jax.stages.encode import encode

    encode(config, workdir)


if __name__ == "__main__":
    run(main, stage="encode")

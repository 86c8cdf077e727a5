"""`python -m ladd_jax.synthesize --config=FILE --workdir=DIR`: the data generator's samples."""

from ladd_jax.cli.run import run
from ladd_jax.stages.synthesize import synthesize

if __name__ == "__main__":
    run(synthesize)

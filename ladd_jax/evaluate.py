"""`python -m ladd_jax.evaluate --config=FILE --workdir=DIR`: a table and a report of a run."""

from ladd_jax.cli.run import run
from ladd_jax.stages.evaluate import evaluate

if __name__ == "__main__":
    run(evaluate)

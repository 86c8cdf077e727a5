"""`python -m ladd_jax.encode --config=FILE --workdir=DIR`: raw data to latent shards."""

from ladd_jax.cli.run import run
from ladd_jax.stages.encode import encode

if __name__ == "__main__":
    run(encode)

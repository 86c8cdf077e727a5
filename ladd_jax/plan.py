"""`python -m ladd_jax.plan --config=FILE --topology=v5p:4x4x4`: does it fit, how fast is it?"""

from ladd_jax.cli.run import run_without_workdir
from ladd_jax.planning.plan import FLAGS, plan

if __name__ == "__main__":
    run_without_workdir(plan, FLAGS)

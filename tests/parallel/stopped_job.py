"""One process of a job that is told to stop: `stopped_job.py DIRECTORY PROCESS SIGNAL`.

The least training over all devices; one process sends itself a signal before its fifth batch.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.parallel.processes import together
from ladd_jax.parallel.stopping import EXIT_CODE, Stopped


def main(directory, process, number):
    # They compute, which a process may not before it has joined its job.
    from counting import go
    from runs import batches

    def data():
        """This process's rows; as slow as the batches of a large network are."""
        for step, (bucket, batch) in enumerate(batches(0, 400), 1):
            if step == 5 and jax.process_index() == process:
                os.kill(os.getpid(), number)
            time.sleep(0.05)
            yield bucket, jax.tree.map(lambda rows: rows[: len(rows) // jax.process_count()], batch)

    go(directory, data=data(), steps=400, mesh=make_mesh({"data": -1}))


if __name__ == "__main__":
    try:
        with together(60):
            main(Path(sys.argv[1]), int(sys.argv[2]), signal.Signals[sys.argv[3]])
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)

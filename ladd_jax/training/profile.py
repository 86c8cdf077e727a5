"""A trace of some steps, as xprof and TensorBoard's profile plugin read it."""

from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces a range of steps; around the loop as a context manager.

    It waits for the device at both edges, so that the trace holds those steps and no others.
    """

    def __init__(self, steps: range, directory: str | Path):
        """Prepares a trace.

        Args:
          steps: numbers of the steps, the first of a run being 1; an empty range traces nothing.
          directory: folder below which the trace is put, under `plugins/profile`.
        """
        self._steps = steps
        self._directory = str(directory)
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """Starts the trace where it begins; `state` is what the step is given."""
        if step in self._steps and not self._tracing:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Every call of a Python function would swamp the trace and slow what it measures.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._tracing = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace where it ends; `state` is what the step gives back."""
        if self._tracing and step + 1 not in self._steps:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

"""Whether a student is compiled, and how much of it."""

import threading
from typing import Any

from ladd_jax.errors import UserError


class Ready:
    """How many of the programs are compiled, and whether all are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done, self._count = 0, 1

    def told(self, done: int, count: int) -> None:
        """Notes how many of how many programs are compiled."""
        with self._lock:
            self._done, self._count = done, count

    @property
    def state(self) -> dict[str, Any]:
        """The content of `/ready`."""
        with self._lock:
            ready = self._done == self._count
            return {"ready": ready, "compiled": self._done, "programs": self._count}

    def check(self) -> None:
        """Raises UserError until all programs are compiled."""
        state = self.state
        if not state["ready"]:
            raise UserError(
                f"{state['compiled']} of {state['programs']} programs are compiled: wait until "
                f"all are"
            )

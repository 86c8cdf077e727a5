"""Which processes of a job live: where one is lost, the others name it and end.

Each tells in JAX's coordination service, every few seconds, that it lives. Without this the others
would wait in a computation for one that is gone, until JAX aborts them without naming it.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from ladd_jax.parallel.stopping import Stopped

LOST_SECONDS = 40.0
"""Without a sign, after which a process is lost."""

_BEAT_SECONDS = 2.0
_FOLDER = "ladd_jax/alive"
_DONE = "done"


class _Watch:
    """A thread that says that this process lives, and looks whether the others do."""

    def __init__(self, store: Any, address: str):
        self._store = store
        self._address = address
        self._index = jax.process_index()
        self._ended = threading.Event()
        self._beats = 0
        self._seen: dict[str, tuple[str, float]] = {}

    def start(self) -> None:
        """Begins to say so."""
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Says that this process is done, and will say nothing more."""
        self._ended.set()
        self._thread.join(_BEAT_SECONDS)
        with contextlib.suppress(Exception):
            self._tell(_DONE)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._beats += 1
                self._tell(f"{self._beats} {os.getpid()} {socket.gethostname()}")
                lost = self._lost(dict(self._store.key_value_dir_get(_FOLDER)))
            except Exception:
                # An orderly end takes the service away, too.
                if self._ended.wait(_BEAT_SECONDS):
                    return
                lost = f"process 0 at {self._address} does not answer"
            if lost:
                print(
                    f"error: process {self._index} ends, since {lost}: see what that one printed "
                    f"and whether its machine is there, and start the same command again",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            self._ended.wait(_BEAT_SECONDS)

    def _tell(self, sign: str) -> None:
        self._store.key_value_set(f"{_FOLDER}/{self._index}", sign, allow_overwrite=True)

    def _lost(self, signs: dict[str, str]) -> str:
        """The processes that gave no new sign for long, in words; empty where there is none."""
        now = time.monotonic()
        for name, sign in signs.items():
            if self._seen.get(name, ("", 0.0))[0] != sign:
                self._seen[name] = (sign, now)
        lost = []
        for name, (sign, since) in sorted(self._seen.items()):
            if sign != _DONE and now - since > LOST_SECONDS:
                _, process, host = sign.split(" ", 2)
                lost.append(
                    f"process {name.rpartition('/')[2]} ({process} on {host}) gave no sign of life "
                    f"for {now - since:.0f} seconds"
                )
        return " and ".join(lost)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends this process, in a block, where another one of its job is lost, with a sentence."""
    from jax._src import distributed

    state = distributed.global_state
    if state.client is None:
        yield
        return
    watch = _Watch(state.client, state.coordinator_address or "")
    watch.start()
    try:
        yield
    except Stopped as stopped:
        if stopped.together:
            watch.stop()
        raise
    # After a failure it is not stopped: a process that leaves alone is lost to the others.
    watch.stop()

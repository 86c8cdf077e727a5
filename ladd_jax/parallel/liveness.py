"""Which processes of a job live: where one is lost, the others name it and end.

Each tells in JAX's coordination service, every few seconds, that it lives. Without this the others
would wait in a computation for one that is gone, until JAX aborts them without naming it.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from ladd_jax.parallel.stopping import Stopped

LOST_SECONDS = 40.0
"""Without a sign, after which a process is lost."""

_BEAT_SECONDS = 2.0
_FOLDER = "ladd_jax/alive"
_DONE = "done"


class _Watch:
    """Threads that say that this process lives, and look whether the others do."""

    def __init__(self, store: Any, address: str):
        self._store = store
        self._address = address
        self._index = jax.process_index()
        self._ended = threading.Event()
        self._beats = 0
        self._signs: dict[str, str] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        self._answered = time.monotonic()
        self._aborting = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)

    def start(self) -> None:
        """Begins to say so, and to look."""
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()
        threading.Thread(target=self._look, name="liveness", daemon=True).start()
        # Not Python's handler, which would wait for the main thread.
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._aborting)

    def stop(self) -> None:
        """Says that this process is done, and will say nothing more."""
        self._ended.set()
        ctypes.CDLL(None).signal(int(signal.SIGABRT), None)  # SIG_DFL
        self._beating.join(_BEAT_SECONDS)
        with contextlib.suppress(Exception):
            self._tell(_DONE)

    def _beat(self) -> None:
        while not self._ended.is_set():
            # A coordinator that is gone is found by the time since it answered.
            with contextlib.suppress(Exception):
                self._beats += 1
                self._tell(f"{self._beats} {os.getpid()} {socket.gethostname()}")
                self._signs = dict(self._store.key_value_dir_get(_FOLDER))
                self._answered = time.monotonic()
            self._ended.wait(_BEAT_SECONDS)

    def _look(self) -> None:
        """Ends this process where another one is lost. It calls nothing that may hang."""
        while not self._ended.wait(_BEAT_SECONDS):
            silent = time.monotonic() - self._answered
            if silent > LOST_SECONDS:
                _end(f"process 0 at {self._address} did not answer for {silent:.0f} seconds")
            lost = self._lost(self._signs)
            if lost:
                _end(lost)

    def _aborted(self, number: int) -> None:
        """Names the coordinator where JAX aborts for it, as it does when a connection breaks."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_BEAT_SECONDS).close()
        except (OSError, ValueError):
            _end(f"process 0 at {self._address} is lost")
        ctypes.CDLL(None).signal(number, None)  # SIG_DFL, to which the abort goes on.

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


def _end(reason: str) -> None:
    print(
        f"error: process {jax.process_index()} ends, since {reason}: see what that one printed and "
        f"whether its machine is there, and start the same command again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Ends this process, in a block, where another one of its job is lost, with a sentence."""
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

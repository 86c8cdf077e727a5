"""Which processes of a job are alive: if one is lost or hangs, the others name it and end.

Every few seconds each process reports to JAX's coordination service that it is alive and which step
of a training it is at. Without this the others would wait in a computation for a lost process until
JAX aborts them without naming it, and forever for one whose threads live while its work hangs.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import jax
from jax._src import distributed

from ladd_jax.parallel.stopping import Stopped

LOST_SECONDS = 40.0
"""Time without a sign of life, or at a step that the others have left, after which a process counts
as lost."""

READING_SECONDS = 600.0
"""The same for a process that waits for data: storage that fails over is away for minutes."""

_BEAT_SECONDS = 2.0
_FOLDER = "ladd_jax/alive"
_DONE = "done"
_NO_STEP = -1

_at = (_NO_STEP, False)
"""The step that this process has begun, and whether it waits for data."""


class Tell(Protocol):
    """See `stepping`."""

    def __call__(self, step: int | None, reading: bool = False) -> None:
        """Tells the others the step, and whether this process waits for data."""


@contextlib.contextmanager
def stepping() -> Iterator[Tell]:
    """A block in which processes take steps together.

    Yields:
      A function that tells the others the last step that this process has given to its devices.
      Call it just before giving the step, since the computation waits for all processes, with
      `reading` before waiting for data, and with None before what one process may do by itself for
      long. A process that stays for `LOST_SECONDS` at a step which another one has left ends the
      job; one that waits for data is only reported then, and ends it after `READING_SECONDS`.
    """

    def tell(step: int | None, reading: bool = False) -> None:
        global _at
        _at = (_NO_STEP if step is None else step, reading)

    try:
        yield tell
    finally:
        tell(None)


def _place() -> str:
    """Where the main thread is, in words."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "a place that is not known"
    code = frame.f_code
    return f"{code.co_name} ({os.path.basename(code.co_filename)}, line {frame.f_lineno})"


@dataclasses.dataclass(frozen=True)
class _Sign:
    """What a process reports about itself.

    Attributes:
      beats: number of its reports so far.
      process: number of the process on its host.
      host: name of its host.
      step: the step that it has begun, or `_NO_STEP`.
      reading: whether it waits for data.
      place: the function, the file and the line that its main thread is at.
    """

    beats: int
    process: int
    host: str
    step: int
    reading: bool
    place: str


class _Watch:
    """Threads that report that this process is alive, and look whether the others are."""

    def __init__(self, store: Any, address: str):
        self._store = store
        self._address = address
        self._index = jax.process_index()
        self._ended = threading.Event()
        self._beats = 0
        self._signs: dict[str, str] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        # Of each process that is behind: its step and whether it waits for data, since when, and
        # whether that was reported.
        self._behind: dict[str, tuple[tuple[int, bool], float, bool]] = {}
        self._answered = time.monotonic()
        self._aborting = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)

    def start(self) -> None:
        """Starts to report and to look."""
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()
        threading.Thread(target=self._look, name="liveness", daemon=True).start()
        # Not Python's handler, which would wait for the main thread.
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._aborting)

    def stop(self) -> None:
        """Reports that this process is done and will report nothing more."""
        self._ended.set()
        ctypes.CDLL(None).signal(int(signal.SIGABRT), None)  # SIG_DFL
        self._beating.join(_BEAT_SECONDS)
        with contextlib.suppress(Exception):
            self._tell(_DONE)

    def _beat(self) -> None:
        while not self._ended.is_set():
            # Errors are ignored: `_look` finds a lost coordinator by the time since it answered.
            with contextlib.suppress(Exception):
                self._beats += 1
                sign = _Sign(self._beats, os.getpid(), socket.gethostname(), *_at, _place())
                self._tell(json.dumps(dataclasses.asdict(sign)))
                self._signs = dict(self._store.key_value_dir_get(_FOLDER))
                self._answered = time.monotonic()
            self._ended.wait(_BEAT_SECONDS)

    def _look(self) -> None:
        """Ends this process if another one is lost; calls nothing that may hang."""
        while not self._ended.wait(_BEAT_SECONDS):
            silent = time.monotonic() - self._answered
            if silent > LOST_SECONDS:
                _end(f"process 0 at {self._address} did not answer for {silent:.0f} seconds")
            signs = self._signs
            lost = self._lost(signs) or self._hangs(signs)
            if lost:
                _end(lost)

    def _aborted(self, number: int) -> None:
        """Names the coordinator if JAX aborts for it, as it does when a connection breaks."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_BEAT_SECONDS).close()
        except (OSError, ValueError):
            _end(f"process 0 at {self._address} is lost")
        ctypes.CDLL(None).signal(number, None)  # SIG_DFL, so that the abort goes on.

    def _tell(self, sign: str) -> None:
        self._store.key_value_set(f"{_FOLDER}/{self._index}", sign, allow_overwrite=True)

    def _lost(self, signs: dict[str, str]) -> str:
        """The processes that gave no new sign for too long, in words; empty if there are none."""
        now = time.monotonic()
        for name, sign in signs.items():
            if self._seen.get(name, ("", 0.0))[0] != sign:
                self._seen[name] = (sign, now)
        return " and ".join(
            f"{_named(name, _read(sign))} gave no sign of life for {now - since:.0f} seconds"
            for name, (sign, since) in sorted(self._seen.items())
            if sign != _DONE and now - since > LOST_SECONDS
        )

    def _hangs(self, signs: dict[str, str]) -> str:
        """The processes that stay too long at a step which others have left, in words, or empty.

        Long before that, a warning names those that wait for data.
        """
        now = time.monotonic()
        at = {name: _read(sign) for name, sign in signs.items() if sign != _DONE}
        stepping = {name: sign for name, sign in at.items() if sign.step > _NO_STEP}
        steps = {sign.step for sign in stepping.values()}
        # Processes between the first and the last one wait for the last one, too.
        last = {n: sign for n, sign in stepping.items() if sign.step == min(steps) < max(steps)}
        before, self._behind = self._behind, {}
        lost = []
        for name, sign in sorted(last.items()):
            # A process whose data have come at last still has to begin its step.
            at_work = (sign.step, sign.reading)
            then, since, told = before.get(name, (at_work, now, False))
            if then != at_work:
                since, told = now, False
            words = (
                f"{_named(name, sign)} hangs after step {sign.step}, for {now - since:.0f} seconds "
                f"now, in {sign.place}"
            )
            if now - since > (READING_SECONDS if sign.reading else LOST_SECONDS):
                lost.append(words)
            elif now - since > LOST_SECONDS and not told:
                told = True
                print(f"\nwarning: {words}: all wait for it", file=sys.stderr, flush=True)
            self._behind[name] = (at_work, since, told)
        return " and ".join(lost)


def _read(sign: str) -> _Sign:
    return _Sign(**json.loads(sign))


def _named(name: str, sign: _Sign) -> str:
    return f"process {name.rpartition('/')[2]} ({sign.process} on {sign.host})"


def _end(reason: str) -> None:
    # On a line of its own: a progress bar leaves the cursor behind it.
    print(
        f"\nerror: process {jax.process_index()} ends, since {reason}: see what that process "
        f"printed and whether its machine is up, and start the same command again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """A block in which the loss of another process of the job ends this one with a sentence."""
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
    # Not stopped after a failure, since the others are to count a process that leaves as lost.
    watch.stop()

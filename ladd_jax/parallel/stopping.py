"""How a job is told to stop, and when it does.

A user, a launcher or a cluster that takes machines away sends SIGTERM or SIGINT. Most work stops at
once: it is repeated, or lies on disk already. Training stops after a step that all processes agree
on, so that it can be saved.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75
"""Of a job that was stopped and goes on when it is started again, by which launchers know to do so:
EX_TEMPFAIL of sysexits.h."""

_GOES_ON = "the same command goes on with what is on disk"

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# After a signal whose error got lost, until it is raised once more.
_AGAIN_SECONDS = 0.1


class Stopped(BaseException):
    """The job was told to stop: no fault, so no `Exception`.

    Attributes:
      together: whether all processes stop at the same place, so that none loses another.
    """

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together


class _Notice:
    """What this process was told.

    Attributes:
      signal: name of the signal, empty before one came.
      deferred: whether a step is to be ended first.
      service: handler of JAX's preemption service, which tells the other processes.
      lost: whether Python dropped the error of the last signal, which came in a finalizer.
    """

    def __init__(self, service: Any = None) -> None:
        self.signal = ""
        self.deferred = False
        self.service = service
        self.lost = False
        self._again: threading.Timer | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        again, name = bool(self.signal) and not self.lost, signal.Signals(number).name
        self.signal, self.lost = name, False
        if self.deferred and not again:
            # Not by print, which a signal may have interrupted.
            message = f"\n{name}: training ends with a checkpoint after this step\n"
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
            if self.service:
                self.service(signal.SIGTERM)
            return
        # A launcher may send SIGTERM again and again; a user who insists means now.
        if not again or number == signal.SIGINT:
            raise Stopped(f"stopped by {name}: {_GOES_ON}")

    def repeat(self) -> None:
        """Sends this process its signal once more, a little later."""
        self.lost = True
        number = signal.Signals[self.signal]
        self._again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        self._again.daemon = True
        self._again.start()

    def end(self) -> None:
        """Sends nothing any more."""
        if self._again:
            self._again.cancel()


_notice = _Notice()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """SIGTERM and SIGINT raise `Stopped` in a block, at once or when `deferred` says.

    Enter it in the main thread, in a job of several processes after joining it: the preemption
    service of JAX has a handler of its own then, which is called by this one.
    """
    global _notice
    service = None
    if jax.distributed.is_initialized():
        get_handler = ctypes.pythonapi.PyOS_getsig
        get_handler.restype = ctypes.CFUNCTYPE(None, ctypes.c_int)
        service = get_handler(ctypes.c_int(signal.SIGTERM))
    _notice = _Notice(service)
    before = {number: signal.signal(number, _notice.receive) for number in _SIGNALS}
    hook = sys.unraisablehook

    def unraisable(found: Any) -> None:
        # What a handler raises inside of a finalizer or of a callback of the collector goes here.
        if isinstance(found.exc_value, Stopped):
            _notice.repeat()
        else:
            hook(found)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _notice.end()
        for number, previous in before.items():
            # None is a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        _notice = _Notice()


class Deferred:
    """Asks, after each step, whether it is the last one."""

    def reached(self, step: int) -> bool:
        """Whether all processes stop after a step; all ask after each."""
        if jax.process_count() == 1:
            return bool(_notice.signal)
        # Of the service's counters Orbax, which asks where it saves, has this one too.
        return multihost_utils.reached_preemption_sync_point(step)

    def stopped(self, place: str) -> Stopped:
        """What to raise when it is saved.

        Args:
          place: where the job goes on, such as "step 7 of distil" or "the start of distil".
        """
        told = _notice.signal or "a signal to another process"
        return Stopped(f"stopped by {told}: the same command goes on from {place}", together=True)


@contextlib.contextmanager
def deferred(start: int) -> Iterator[Deferred]:
    """A block whose steps are ended before the job stops.

    Args:
      start: steps that are done when it begins.

    Raises:
      Stopped: a signal came too late for a step of the block.
    """
    stop = Deferred()
    if jax.process_count() > 1:
        # The service takes the furthest process's step: none may still be at that of a training
        # before.
        if stop.reached(start):
            raise stop.stopped(f"step {start}")
        multihost_utils.sync_global_devices("training begins")
    _notice.deferred = True
    try:
        yield stop
    finally:
        _notice.deferred = False
    if _notice.signal:
        raise Stopped(f"stopped by {_notice.signal}: {_GOES_ON}")

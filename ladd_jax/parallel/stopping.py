"""How a job is told to stop, and when it does.

A user, a launcher or a cluster that takes machines away sends SIGTERM or SIGINT. Most work stops at
once: it is on disk already, or can be repeated. Training stops after a step that all processes
agree on, so that it can be saved.

A job that is already ending with an error reports that error: raising `Stopped` on top of it would
cut short whatever cleans up after it or tells the user.
"""

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

EXIT_CODE = 75
"""Exit code of a job that was stopped and goes on when it is started again, which tells launchers
to do so: EX_TEMPFAIL of sysexits.h."""

_GOES_ON = "the same command goes on with what is on disk"

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Time until a signal that could not be raised is sent once more.
_AGAIN_SECONDS = 0.1
# How long an error that is being handled may hold off a signal, and the repeated signal of a user
# who insists. The first leaves time for a checkpoint that is being written.
_PATIENCE_SECONDS = 60.0
_INSISTING_SECONDS = 2.0


class Stopped(BaseException):
    """The job was told to stop: not a fault, so not an `Exception`.

    Attributes:
      together: whether all processes stop at the same place, so that none loses another.
    """

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together


class _Notice:
    """The signal that this process was sent, and what it does about it.

    Attributes:
      signal: name of the signal, empty before one came.
      came: when the signal came, by the monotonic clock.
      deferred: whether the current step is to be finished first.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.signal = ""
        self.came = math.inf
        self.deferred = False
        self._service: Any = None
        self._over = False
        # An error that is being handled when the block begins is not on its way out of the block.
        self._outer = sys.exception()
        self._patient_until = math.inf
        self._sent_again = False
        self._again: threading.Timer | None = None
        self._sending = threading.Lock()

    def install(self) -> None:
        """Handles the signals from now on, until `remove`."""
        # Imported late: JAX takes seconds, in which signals are to be handled, too.
        import jax

        global _notice
        if jax.distributed.is_initialized():
            get_handler = ctypes.pythonapi.PyOS_getsig
            get_handler.restype = ctypes.CFUNCTYPE(None, ctypes.c_int)
            # The handler of JAX's preemption service, which tells the other processes.
            self._service = get_handler(ctypes.c_int(signal.SIGTERM))
        self._before, _notice = _notice, self
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._handlers = {number: signal.signal(number, self.receive) for number in _SIGNALS}

    def remove(self) -> None:
        """Stops handling signals and restores the handlers from before."""
        global _notice
        self.end()
        sys.unraisablehook, _notice = self._hook, self._before
        for number, handler in self._handlers.items():
            # None stands for a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _unraisable(self, found: Any) -> None:
        # What a signal handler raises in a finalizer or a garbage collector's callback ends here.
        if isinstance(found.exc_value, Stopped):
            self._send_again()
        else:
            self._hook(found)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        sent_again, self._sent_again = self._sent_again, False
        repeated = bool(self.signal) and not sent_again
        if not sent_again:
            self.signal = signal.Signals(number).name
            self.came = min(self.came, time.monotonic())
        # A launcher may send SIGTERM again and again; a user who insists means now.
        if self._over or (repeated and number != signal.SIGINT):
            return
        if self.deferred and not repeated and not sent_again:
            _write(f"\n{self.signal}: training ends with a checkpoint after this step")
            if self._service:
                self._service(signal.SIGTERM)
            return
        if repeated:
            self._patience(_INSISTING_SECONDS)
        elif not sent_again:
            self._patience(_PATIENCE_SECONDS)
        if sys.exception() is self._outer:
            raise self.stopped()
        if time.monotonic() > self._patient_until:
            _exit(str(self.stopped()))
        self._send_again()

    def stopped(self) -> Stopped:
        """The error to raise for the signal."""
        return Stopped(f"stopped by {self.signal}: {_GOES_ON}")

    def _patience(self, seconds: float) -> None:
        self._patient_until = min(self._patient_until, time.monotonic() + seconds)

    def _send_again(self) -> None:
        """Sends this process its signal once more, a little later."""

        def send() -> None:
            with self._sending:
                if not self._over:
                    self._sent_again = True
                    os.kill(os.getpid(), signal.Signals[self.signal])

        if self._again:
            self._again.cancel()
        self._again = threading.Timer(_AGAIN_SECONDS, send)
        self._again.daemon = True
        self._again.start()

    def end(self) -> None:
        """From now on signals have no effect and none is sent again: the work is done."""
        with self._sending:
            self._over = True
        if self._again:
            self._again.cancel()


_notice = _Notice()


def _write(line: str) -> None:
    # Not by print, which the signal may have interrupted. The reader may be gone, such as a `tee`
    # that got the same Ctrl-C.
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())


def _exit(message: str) -> NoReturn:
    _write(message)
    os._exit(EXIT_CODE)


def end_at_once() -> None:
    """From now on SIGTERM and SIGINT end this process with a sentence and `EXIT_CODE`.

    For what a command does before its work, such as imports, which leaves nothing behind.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        _exit(f"stopped by {signal.Signals(number).name}: nothing was begun")

    for number in _SIGNALS:
        signal.signal(number, receive)


def signalled(before: float = math.inf) -> Stopped | None:
    """The error of the signal that has come, in a block of `handled`; None if none has.

    Args:
      before: moment of the monotonic clock; signals that came later do not count.
    """
    return _notice.stopped() if _notice.signal and _notice.came <= before else None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """SIGTERM and SIGINT raise `Stopped` in a block, at once or when `deferred` says.

    They do so only while no error is being handled, since that is the one sign of an error on its
    way out of the block. Until then a signal is kept, and it has no effect if the error ends the
    block. If this takes a minute, or two seconds after a user insists, the process ends where it
    is.

    Enter it in the main thread, and in a job of several processes after joining it: by then the
    preemption service of JAX has a handler of its own, which this one calls.
    """
    notice = _Notice()
    notice.install()
    try:
        try:
            yield
        finally:
            # A signal that comes just before this raises, and the outer `finally` is still run.
            notice.end()
    finally:
        notice.remove()


def run(work: Callable[[], Any]) -> None:
    """Does all that is left for this process to do, as a block of `handled`.

    It is a function and not a context manager: a signal between the end of a block and the
    manager's exit would raise an error that nobody handles.

    Args:
      work: function that does the work.

    Raises:
      SystemExit: a signal stopped the work; one sentence on stderr says so.

    Once it returns or raises, SIGTERM and a first SIGINT change nothing.
    """
    notice = _Notice()
    try:
        notice.install()
        work()
        notice.end()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(EXIT_CODE) from None
    finally:
        # Python's own exit takes a moment: only a user who insists ends it, without a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda number, _: signal.signal(number, signal.SIG_DFL))
        # An error may have ended the work.
        notice.end()


class Deferred:
    """Asks, after each step, whether it is the last one."""

    def reached(self, step: int) -> bool:
        """Whether all processes stop after a step; all ask after each."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return bool(_notice.signal)
        # Orbax uses the same counter of the service, and asks for it where it saves.
        return multihost_utils.reached_preemption_sync_point(step)

    def stopped(self, place: str) -> Stopped:
        """The error to raise once the state is saved.

        Args:
          place: where the job goes on, such as "step 7 of distil" or "the start of distil".
        """
        told = _notice.signal or "a signal to another process"
        return Stopped(f"stopped by {told}: the same command goes on from {place}", together=True)


@contextlib.contextmanager
def deferred(start: int) -> Iterator[Deferred]:
    """A block whose steps are finished before the job stops.

    Args:
      start: number of steps that are done when it begins.

    Raises:
      Stopped: a signal came too late for a step of the block.
    """
    import jax
    from jax.experimental import multihost_utils

    stop = Deferred()
    if jax.process_count() > 1:
        # The service goes by the process that is furthest: none may still be at a step of the
        # training before.
        if stop.reached(start):
            raise stop.stopped(f"step {start}")
        multihost_utils.sync_global_devices("training begins")
    _notice.deferred = True
    try:
        yield stop
    finally:
        _notice.deferred = False
    if stopped := signalled():
        raise stopped

"""Who owns a workdir: one job, until it ends or is found dead.

The owner keeps a file there that says who it is, and touches it every few seconds. On the owner's
machine another job sees whether that process lives; elsewhere, whether the file is still touched.
Locks of the file system itself are not used: not every network disk has them, and some keep those
of a machine that is gone.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ladd_jax.errors import ExistsError

_LOG = logging.getLogger(__name__)

OWNER = "owner.json"
"""The file in a workdir that names its owner."""

READERS = "readers"
"""The folder of the files of jobs of other workdirs that read the data of a directory."""

_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 60.0
_LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Owner:
    """A job, by its first process.

    Attributes:
      host: name of its host.
      process: number of the process.
      machine: a name of what numbers that process: a boot of a machine, and a container on it;
        empty where the system does not tell.
      started: when the process began, in ticks of that machine, since numbers are used again;
        empty where the system does not tell.
      job: a name of its own.
    """

    host: str
    process: int
    machine: str
    started: str
    job: str

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        process = os.getpid()
        return cls(socket.gethostname(), process, _machine(), _started(process), uuid.uuid4().hex)

    def lives(self) -> bool | None:
        """Whether the process is there; None where this machine cannot tell."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.process) == self.started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began; empty for one that is not there, or that has ended unnoticed."""
    try:
        # The name before the parenthesis may hold spaces.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, started = fields[0], fields[19]
    return "" if state in "ZX" else started


@contextlib.contextmanager
def owned(
    workdir: Path,
    flag: str = "workdir",
    *,
    beat_seconds: float = _BEAT_SECONDS,
    dead_seconds: float = _DEAD_SECONDS,
) -> Iterator[None]:
    """Owns a workdir, which is made if it is not there, for the time of a block.

    An owner that died is taken over from: at once where this machine sees that its process is gone,
    else when its file was not touched for `dead_seconds`, for which this waits.

    Args:
      workdir: the run's workdir, or the directory of its data.
      flag: the flag that names it.
      beat_seconds: seconds from one touch of the file to the next.
      dead_seconds: seconds without one after which an owner on another machine is dead.

    Raises:
      ExistsError: a job that lives owns it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, owner = workdir / OWNER, Owner.here()
    while not _write(path, owner):
        _remove_dead(path, owner.job, f"{workdir} belongs to", flag, dead_seconds)
    with _kept(path, owner, beat_seconds):
        yield


@contextlib.contextmanager
def reading(data: Path, *, beat_seconds: float = _BEAT_SECONDS) -> Iterator[None]:
    """Says that this job reads the data of a directory, for the time of a block.

    Any number of jobs may. Where nothing can be written it says nothing.
    """
    owner = Owner.here()
    path = data / READERS / f"{owner.job}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        _write(path, owner)
    except OSError:
        yield
        return
    with _kept(path, owner, beat_seconds):
        yield
    # Where it was the last.
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def check_unread(data: Path, *, dead_seconds: float = _DEAD_SECONDS) -> None:
    """Whether data can be changed: what readers left that died is removed.

    Raises:
      ExistsError: a job that lives reads them.
    """
    for path in sorted((data / READERS).glob("*.json")):
        while path.exists():
            _remove_dead(path, uuid.uuid4().hex, f"{data} is read by", "data", dead_seconds)


@contextlib.contextmanager
def _kept(path: Path, owner: Owner, beat_seconds: float) -> Iterator[None]:
    """Touches the file of an owner for the time of a block, and removes it."""
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, owner, beat_seconds, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if _read(path)[0] == owner:
            path.unlink()


def _write(path: Path, owner: Owner | None) -> bool:
    """Writes the file where there is none; whether it did."""
    try:
        with path.open("x") as file:
            file.write(json.dumps(owner and dataclasses.asdict(owner)) + "\n")
    except FileExistsError as error:
        if path.is_symlink() and not path.exists():
            raise ExistsError(f"{path} is a link to nothing: remove it") from error
        return False
    except OSError as error:
        # On a mounted bucket a file is made when it is closed, and may be another host's by then.
        if error.errno != errno.ESTALE:
            raise
        return False
    return True


def _remove_dead(path: Path, job: str, claim: str, flag: str, dead_seconds: float) -> None:
    """Removes the file of an owner that is dead; waits where that is not known yet.

    Raises:
      ExistsError: it lives.
    """
    owner, first = _read(path)
    clock = path.with_name(f".{path.name}.{job}.partial")
    waits = False
    try:
        while True:
            lives = None if owner is None else owner.lives()
            found, touched = _read(path)
            if touched is None or found != owner:
                return  # It was removed, or is another one's already.
            if lives or (lives is None and touched != first):
                whose = f"process {owner.process} on {owner.host}" if owner else "another job"
                raise ExistsError(
                    f"{claim} {whose}, which is running: wait until it has "
                    f"ended, end it, or use another --{flag}"
                )
            # The time of the disk, whatever the clock of this machine says.
            clock.touch()
            if lives is False or clock.stat().st_mtime - touched > dead_seconds:
                break
            if not waits:
                _LOG.info("%s: waits to see whether its job lives", path)
            waits = True
            time.sleep(_LOOK_SECONDS)
        # Of several jobs that come here one takes it away; what a late one takes, it puts back.
        os.rename(path, clock)
        taken, _ = _read(clock)
        if taken != owner:
            _write(path, taken)
        else:
            _LOG.info("%s: taken over from a job that died", path)
    except FileNotFoundError:
        return  # Another was faster.
    finally:
        clock.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Owner | None, float | None]:
    """Who is named in a file, None where it is damaged, and when it was touched, by its disk.

    To open a file makes a network disk tell the newest.
    """
    try:
        with path.open() as file:
            touched = os.fstat(file.fileno()).st_mtime
            try:
                return Owner(**json.load(file)), touched
            except (TypeError, ValueError, RecursionError):
                return None, touched
    except FileNotFoundError:
        return None, None
    except OSError as error:
        # It was replaced while it was read.
        if error.errno != errno.ESTALE:
            raise
        return None, None


def _beat(path: Path, owner: Owner, seconds: float, ended: threading.Event) -> None:
    """Touches the file until the job has ended; ends the job where it has another owner."""
    while not ended.wait(seconds):
        try:
            os.utime(path)
            found, touched = _read(path)
        except OSError:
            continue  # The disk is away for a moment.
        if touched is not None and found != owner:
            print(
                f"error: {path.parent} was taken over by another job while this one stood still: "
                f"end one of them",
                file=sys.stderr,
                flush=True,
            )
            # Nothing more may be written, by any thread.
            os._exit(1)

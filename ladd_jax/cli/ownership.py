"""Lets one job own a workdir, until the job ends or is found dead.

The owner keeps a file there that says who it is, and touches it every few seconds. On the owner's
machine another job checks whether that process is alive; elsewhere, whether the file is still being
touched. Locks of the file system are not used: not every network disk has them, and some keep the
locks of a machine that is gone.
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
"""The folder in a data directory where jobs of other workdirs that read the data keep a file."""

_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 60.0
_LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Owner:
    """A job, identified by its first process.

    Attributes:
      host: name of the process's host.
      process: number of the process (PID).
      machine: identifies the boot of the machine, and the container on it, in which that number is
        valid; empty if the system does not say.
      started: when the process began, in ticks of that machine, since numbers are used again;
        empty if the system does not say.
      job: a unique name of the job.
      file: number of the file (inode) that this was written to; 0 if it is not known.
    """

    host: str
    process: int
    machine: str
    started: str
    job: str
    # Not compared: a file that is put back has another number.
    file: int = dataclasses.field(default=0, compare=False)

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        process = os.getpid()
        return cls(socket.gethostname(), process, _machine(), _started(process), uuid.uuid4().hex)

    def lives(self) -> bool | None:
        """Whether the process is alive; None if this machine cannot tell."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.process) == self.started

    def is_copy(self, file: int) -> bool:
        """Whether this was read from a copy of its file, as in a copied workdir.

        Args:
          file: number of the file that it was read from.
        """
        return bool(self.file) and self.file != file


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began; empty for one that does not exist, or is a zombie."""
    try:
        # The name in parentheses may hold spaces, so fields are counted after it.
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
    """A block in which this job owns a workdir, which is made if it does not exist.

    The workdir of a dead owner is taken over: at once if this machine sees that the owner's process
    is gone, and otherwise once its file has not been touched for `dead_seconds`, after a wait. The
    latter goes for a copied workdir, too, whose file names an owner of the first one.

    Args:
      workdir: the run's workdir, or the directory of its data.
      flag: the flag that names it.
      beat_seconds: seconds from one touch of the file to the next.
      dead_seconds: seconds without a touch after which an owner on another machine counts as dead.

    Raises:
      ExistsError: a running job owns the workdir.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, owner = workdir / OWNER, Owner.here()
    while not _write(path, owner):
        _remove_dead(path, owner.job, f"{workdir} belongs to", flag, dead_seconds)
    with _kept(path, owner, beat_seconds):
        yield


@contextlib.contextmanager
def reading(data: Path, *, beat_seconds: float = _BEAT_SECONDS) -> Iterator[None]:
    """A block in which a file in a data directory says that this job reads the data.

    Any number of jobs may do so. If the directory cannot be written to, there is no such file.
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
    # Succeeds if this was the last reader.
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def check_unread(data: Path, *, dead_seconds: float = _DEAD_SECONDS) -> None:
    """Checks that no job reads the data, so that they may change; removes files of dead readers.

    Raises:
      ExistsError: a running job reads the data.
    """
    for path in sorted((data / READERS).glob("*.json")):
        while path.exists():
            _remove_dead(path, uuid.uuid4().hex, f"{data} is read by", "data", dead_seconds)


@contextlib.contextmanager
def _kept(path: Path, owner: Owner, beat_seconds: float) -> Iterator[None]:
    """A block during which the file of an owner is touched; removes the file at the end."""
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
    """Writes the file unless one exists, and returns whether it did."""
    try:
        with path.open("x") as file:
            number = os.fstat(file.fileno()).st_ino
            fields = owner and dataclasses.asdict(owner) | {"file": number}
            file.write(json.dumps(fields) + "\n")
    except FileExistsError as error:
        if path.is_symlink() and not path.exists():
            raise ExistsError(f"{path} is a link to nothing: remove it") from error
        return False
    except OSError as error:
        # A mounted bucket makes a file when it is closed; another host may have been faster.
        if error.errno != errno.ESTALE:
            raise
        return False
    return True


def _remove_dead(path: Path, job: str, claim: str, flag: str, dead_seconds: float) -> None:
    """Removes the file of a dead owner; waits while it is not known whether the owner is alive.

    Raises:
      ExistsError: the owner is alive.
    """
    owner, first, _ = _read(path)
    clock = path.with_name(f".{path.name}.{job}.partial")
    waits = False
    try:
        while True:
            found, touched, number = _read(path)
            if touched is None or found != owner:
                return  # The file was removed, or has another owner already.
            # That the owner of another file lives says nothing about this one.
            lives = None if owner is None or owner.is_copy(number) else owner.lives()
            if lives or (lives is None and touched != first):
                whose = f"process {owner.process} on {owner.host}" if owner else "another job"
                raise ExistsError(
                    f"{claim} {whose}, which is running: wait until it has "
                    f"ended, end it, or use another --{flag}"
                )
            # Compares times of the disk, since this machine's clock may differ from the owner's.
            clock.touch()
            if lives is False or clock.stat().st_mtime - touched > dead_seconds:
                break
            if not waits:
                _LOG.info("%s: waiting to see whether its job is alive", path)
            waits = True
            time.sleep(_LOOK_SECONDS)
        # If several jobs get here, only one of them can rename the file. A late one may rename the
        # new owner's file instead, and puts it back.
        os.rename(path, clock)
        taken, *_ = _read(clock)
        if taken != owner:
            _write(path, taken)
        else:
            _LOG.info("%s: taken over from a job that died", path)
    except FileNotFoundError:
        return  # Another job was faster.
    finally:
        clock.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Owner | None, float | None, int]:
    """The owner that a file names, None if it is damaged; when it was touched, by its disk; and its
    number (inode).

    The file is opened, since that makes a network disk report the newest time.
    """
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            try:
                return Owner(**json.load(file)), found.st_mtime, found.st_ino
            except (TypeError, ValueError, RecursionError):
                return None, found.st_mtime, found.st_ino
    except FileNotFoundError:
        return None, None, 0
    except OSError as error:
        # The file was replaced while it was read.
        if error.errno != errno.ESTALE:
            raise
        return None, None, 0


def _beat(path: Path, owner: Owner, seconds: float, ended: threading.Event) -> None:
    """Touches the file until the job has ended; ends the job if the file gets another owner."""
    while not ended.wait(seconds):
        try:
            os.utime(path)
            found, touched, _ = _read(path)
        except OSError:
            continue  # The disk may be away for a moment.
        if touched is not None and found != owner:
            print(
                f"error: {path.parent} was taken over by another job while this one stood still: "
                f"end one of them",
                file=sys.stderr,
                flush=True,
            )
            # Nothing more may be written, by any thread.
            os._exit(1)

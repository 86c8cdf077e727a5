"""The processes of one job: how they find each other, wait for each other and leave.

A job has one process per host on TPU, one per GPU under Slurm, and any number on CPU. Each runs the
same command; JAX sees the devices of all.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from ladd_jax.errors import UserError
from ladd_jax.parallel import liveness, stopping

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_COUNT = "JAX_NUM_PROCESSES"
_INDEX = "JAX_PROCESS_ID"

# JAX's own limit is this much longer than ours: it would abort the process without saying why.
_MARGIN_SECONDS = 60

# How JAX's message begins when a transport between processes fails. The error may have several
# types, ValueError among them.
_TRANSPORTS = re.compile(r"\w+: (Gloo|NCCL) ")
# A process that lost another one leaves this much later, so that a launcher first sees the one that
# knows why. If that one can no longer say anything, `liveness` names it meanwhile.
_GRACE_SECONDS = liveness.LOST_SECONDS + 5.0
_LOOK_SECONDS = 0.1


def launched(environment: Mapping[str, str], tpu: bool) -> dict[str, Any] | None:
    """What the launcher says about this process's job.

    Args:
      environment: environment variables. The first of these that is present decides: an explicit
        job (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), a step of Slurm with
        several tasks, a TPU slice of several hosts on GKE.
      tpu: whether this host has TPU chips; it then asks its metadata server for its slice.

    Returns:
      Arguments of `jax.distributed.initialize`, which finds the missing ones itself; None for a
      process that is alone.

    Raises:
      UserError: some of the three variables are given and some are not, or one is out of range.
    """
    names = (_COORDINATOR, _COUNT, _INDEX)
    given = [name for name in names if environment.get(name)]
    if given:
        missing = [name for name in names if name not in given]
        if missing:
            raise UserError(
                f"{' and '.join(given)} {'are' if len(given) > 1 else 'is'} set and "
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not: set all "
                f"three, or none for a process alone"
            )
        address = environment[_COORDINATOR]
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"{_COORDINATOR} is {address!r}: use HOST:PORT of process 0")
        count, index = (_whole(environment, name) for name in (_COUNT, _INDEX))
        if not index < count:
            raise UserError(
                f"{_INDEX} is {index} of {_COUNT} {count}: number the processes from 0 to "
                f"{max(count, 1) - 1}"
            )
        if count == 1:
            return None
        return dict(coordinator_address=address, num_processes=count, process_id=index)
    # Of the step and not of the job: a batch script is one process in a job of many tasks.
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return dict(
            num_processes=int(environment["SLURM_STEP_NUM_TASKS"]),
            process_id=int(environment["SLURM_PROCID"]),
            cluster_detection_method="slurm",
        )
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) > 1 or slices > 1:
        return {}
    # GKE gives its pods everything in the environment, so that they need not ask a server.
    return {} if tpu and "TPU_SKIP_MDS_QUERY" not in environment else None


def _whole(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise UserError(f"{name} is {environment[name]!r}: use a whole number of 0 or more")
    return int(environment[name])


def _has_chips() -> bool:
    """Whether this host has TPU chips and the library for them, without starting JAX."""
    devices = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def join(timeout: float) -> None:
    """Joins the job of this process; does nothing where it is alone.

    Call it before anything asks JAX for a device. If the job does not come together, the process
    prints one sentence and exits with code 2.

    Args:
      timeout: seconds to wait for the other processes.

    Raises:
      UserError: the launcher's variables contradict each other, or name a job that JAX cannot
        find.
    """
    job = launched(os.environ, _has_chips())
    if job is None or jax.distributed.is_initialized():
        return
    place = (
        f"process {job['process_id']} of {job['num_processes']}" if job else "this host of the TPU"
    )
    at = f" at {job['coordinator_address']}" if "coordinator_address" in job else ""

    # This tells all processes of a signal to one of them, see `parallel.stopping`.
    jax.config.update("jax_enable_preemption_service", True)
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(**job, initialization_timeout=int(timeout) + _MARGIN_SECONDS)
        except Exception as error:
            failed.append(error)

    # In a thread, since JAX waits without handling signals, and gives up by aborting with a stack
    # trace of its C++.
    joining = threading.Thread(target=initialize, name="join", daemon=True)
    try:
        joining.start()
        joining.join(timeout)
    except stopping.Stopped as stopped:
        # An orderly exit would wait for that thread.
        _leave(stopped)
    if joining.is_alive():
        print(
            f"error: {place} did not meet all others{at} within {timeout:g} seconds: start all "
            f"processes, let them reach the port of process 0, or raise --join_timeout",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)
    for error in failed:
        if not isinstance(error, OSError | RuntimeError | ValueError):
            raise error
        raise UserError(
            f"{place} cannot join its job: {error}; set {_COORDINATOR}, {_COUNT} and {_INDEX}"
        ) from error


@contextlib.contextmanager
def together(timeout: float) -> Iterator[None]:
    """Joins the job; a failure inside ends the process at once, and a signal as `stopping` says.

    An orderly exit of one process would wait for the others, while they wait for it in the middle
    of a computation. So it leaves at once, and the launcher of the job ends the others.

    Args:
      timeout: seconds to wait for the other processes at the start.
    """
    with stopping.handled():
        join(timeout)
        # Nested, and not one after the other: leaving a block resets the handlers, and would remove
        # the one that JAX's service installed in `join`.
        with stopping.handled():
            try:
                with liveness.watched():
                    yield
            except BaseException as error:
                stopped_together = isinstance(error, stopping.Stopped) and error.together
                if jax.distributed.is_initialized() and not stopped_together:
                    note_loss(error)
                    # Where all were sent a signal, another one may have left first.
                    told = stopping.signalled(before=_lost) if lost_another(error) else None
                    _leave(told or error)
                raise


def _leave(error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif isinstance(error, stopping.Stopped):
        print(error, file=sys.stderr)
        code = stopping.EXIT_CODE
    elif lost_another(error):
        until = time.monotonic() + _GRACE_SECONDS
        # A launcher that signals this process knows already.
        while time.monotonic() < until and not stopping.signalled():
            time.sleep(_LOOK_SECONDS)
        print(
            f"error: process {jax.process_index()} lost another process in the middle of a "
            f"computation: see what that one printed ({' '.join(str(error).split())})",
            file=sys.stderr,
        )
        code = 1
    else:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_PIECE = 2**24
"""Bytes of each process that are gathered at once."""


def barrier(name: str) -> None:
    """Returns when all processes have reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def as_process_0(value: bool) -> bool:
    """The value of process 0, for what all processes must decide alike."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def as_all(value: bool) -> bool:
    """Whether the value holds on every process, for what all must decide alike."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int32(value))))


_lost = math.inf
"""When this process saw that it had lost another one, by the monotonic clock."""


def note_loss(error: BaseException) -> None:
    """Notes the time at which this process sees that it has lost another one, the first time.

    For what handles any error and takes long: a launcher that sees why the other one was lost sends
    a signal meanwhile, which is not the reason for the end.
    """
    global _lost
    if lost_another(error):
        _lost = min(_lost, time.monotonic())


def lost_another(error: BaseException) -> bool:
    """Whether an error says that a transport between processes failed."""
    return bool(_TRANSPORTS.match(str(error)))


@contextlib.contextmanager
def one_of_each_host_first(name: str) -> Iterator[None]:
    """Lets one process of each host through before the others, which find what it has fetched.

    If it fails, the others follow all the same, and find out for themselves what is wrong.

    Args:
      name: name of the barrier.
    """
    first = _is_first_of_its_host()
    if not first:
        barrier(name)
    try:
        yield
    finally:
        if first:
            barrier(name)


def _is_first_of_its_host() -> bool:
    if jax.process_count() == 1:
        return True
    digest = hashlib.sha256(socket.gethostname().encode()).digest()
    hosts = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    index = jax.process_index()
    return not any(np.array_equal(hosts[index], host) for host in hosts[:index])


def check_same(what: str, value: Any) -> None:
    """Compares a JSON value over all processes.

    Args:
      what: name of the value.
      value: value of this process.

    Raises:
      UserError: some process has a different value from process 0. All processes raise it, so that
        none waits for one that left.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    for index, other in enumerate(digests):
        if not np.array_equal(other, digests[0]):
            raise UserError(
                f"process {index} has a different {what} from process 0: start all processes with "
                f"the same command and the same files"
            )


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in the order of the processes, on each of them."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    pieces = np.ravel(multihost_utils.process_allgather(np.int32(-(-len(data) // _PIECE))))
    found = [bytearray() for _ in pieces]
    # In pieces, since they pass through the devices' memory.
    for number in range(int(pieces.max())):
        piece = data[number * _PIECE : (number + 1) * _PIECE]
        sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(piece))))
        # Only arrays of the same size can be gathered.
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(piece)] = piece
        rows = multihost_utils.process_allgather(padded)
        for whole, row, size in zip(found, rows, sizes, strict=True):
            whole += row[:size].tobytes()
    return [json.loads(whole) for whole in found]

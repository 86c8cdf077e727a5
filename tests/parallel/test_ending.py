"""Wherever a signal comes while a job ends, the user sees what ends it, in one sentence."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from ladd_jax.cli import run
from ladd_jax.errors import UserError
from ladd_jax.parallel import processes, stopping
from ladd_jax.parallel.stopping import EXIT_CODE, Stopped

ROOT = Path(__file__).parents[2]
STOPPED = "stopped by {}: the same command goes on with what is on disk\n"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Processes as real as any, forked from one that has done the imports: seconds less for each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ladd_jax.parallel.processes"])


@pytest.fixture(autouse=True)
def _as_before():
    """A command changes what its process does with signals for good."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    trace = sys.gettrace()
    yield
    sys.settrace(trace)
    for number, handler in before.items():
        signal.signal(number, handler)


class SignalAt:
    """Sends this process a signal at one line of the package and of contexts, of those that follow.

    Attributes:
      left: lines until then; negative once it was sent.
    """

    def __init__(self, line, number):
        self.left, self.number = line, number

    def start(self):
        sys.settrace(self._called)

    def _called(self, frame, event, argument):
        path = frame.f_code.co_filename
        # The handler itself is not interrupted by its own signal.
        ours = "ladd_jax" in path or path.endswith("contextlib.py")
        return self._line if ours and frame.f_code.co_name != "receive" else None

    def _line(self, frame, event, argument):
        # Python handles no signal between the lines of the functions that an error leaves.
        self.left -= event == "line"
        if self.left == 0:
            sys.settrace(None)
            self.left = -1
            signal.raise_signal(self.number)
        return self._line


def command(at, error=None):
    """What a command does around its work; returns the exit code."""

    def work():
        with run._refusing(), processes.together(60.0), run._refusing():
            if error:
                raise error

    # Of what comes before its first line; a process of its own would end.
    signal.signal(at.number, signal.SIG_IGN)
    try:
        at.start()
        stopping.run(work)
    except SystemExit as ended:
        return ended.code
    finally:
        sys.settrace(None)
    return 0


def outcomes(capsys, number, error=None):
    """Exit codes with what was told, of a signal at each line that there is until the end."""
    found = set()
    for line in range(1, 10_000):
        at = SignalAt(line, number)
        found.add((command(at, error), capsys.readouterr().err))
        if at.left > 0:
            return found, line
    raise AssertionError("it does not end")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_is_told_wherever_on_its_way_a_signal_comes(capsys, monkeypatch, number):
    # So that a signal which is kept is sent again only when it is of no effect any more.
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 100.0)
    found, lines = outcomes(capsys, number, UserError("batch_size 6 is too much: use 4"))
    stopped = (EXIT_CODE, STOPPED.format(number.name))
    assert found == {stopped, (2, "error: batch_size 6 is too much: use 4\n")}
    assert lines > 100


def test_a_signal_that_an_error_kept_off_is_not_sent_once_the_work_is_over(capsys, monkeypatch):
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.05)

    def work():
        with run._refusing():
            try:
                raise UserError("use 4")
            finally:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        stopping.run(work)
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    time.sleep(0.2)
    assert not came and capsys.readouterr().err == "error: use 4\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_around_the_work_stops_it_in_one_sentence_or_changes_nothing(capfd, number):
    found, _ = outcomes(capfd, number)
    assert found == {(EXIT_CODE, STOPPED.format(number.name)), (0, "")}


def test_who_handles_an_error_ends_that_before_a_signal_stops_the_work():
    done = []
    with pytest.raises(Stopped, match="stopped by SIGTERM"), stopping.handled():
        try:
            raise OSError("the disk is away")
        except OSError:
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned up")
        time.sleep(10)
        done.append("goes on")
    assert done == ["cleaned up"]


def test_work_inside_of_a_handler_of_an_error_is_stopped_as_any_other():
    with pytest.raises(Stopped):
        try:
            raise LookupError
        except LookupError:
            with stopping.handled():
                signal.raise_signal(signal.SIGTERM)
                time.sleep(10)


def in_a_process(work, told):
    """Does something in another process; returns its exit code and what it told."""
    process = PROCESSES.Process(target=_telling, args=(work, told))
    process.start()
    process.join(60)
    return process.exitcode, told.read_text()


def _telling(work, told):
    with told.open("w", buffering=1) as sys.stderr:
        sys.__stderr__ = sys.stderr
        work()


def handles_an_error_for_ever():
    stopping._INSISTING_SECONDS = 0.1
    with stopping.handled():
        try:
            raise OSError
        except OSError:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            time.sleep(100)


def test_a_user_who_insists_does_not_wait_for_who_handles_an_error(tmp_path):
    code, told = in_a_process(handles_an_error_for_ever, tmp_path / "told")
    assert (code, told) == (EXIT_CODE, STOPPED.format("SIGINT"))


def loses_another():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jax.distributed.initialize(address, 1, 0)
    with processes.together(60.0):
        try:
            raise ValueError("UNKNOWN: Gloo AllGather failed")
        except ValueError as error:
            # What waits on the way out notes the loss, and then a launcher ends this process.
            processes.note_loss(error)
            signal.raise_signal(signal.SIGTERM)
            raise


def test_a_process_that_lost_another_says_so_at_once_when_its_launcher_ends_it(tmp_path):
    began = time.monotonic()
    code, told = in_a_process(loses_another, tmp_path / "told")
    assert code == 1
    assert told.startswith("error: process 0 lost another process") and told.count("\n") == 1
    assert time.monotonic() - began < processes._GRACE_SECONDS


def start(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, *arguments, "--config=digits", "--workdir=nowhere/run"],
        cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_signal_while_a_command_imports_is_one_sentence():
    script = (
        "import runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'jax':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('ladd_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    process = start("-c", script)
    assert process.communicate()[1] == "stopped by SIGINT: nothing was begun\n"
    assert process.returncode == EXIT_CODE


def test_a_signal_while_processes_meet_ends_the_waiting(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(
        "-m", "ladd_jax.main", JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID="0",
    )  # fmt: skip
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == STOPPED.format("SIGINT")
    assert process.returncode == EXIT_CODE

"""The small job of every trial, as processes that can be killed."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ladd_jax.config.fields import STAGES

_CONFIG = (
    "--config=digits",
    "--config.data.buckets=('8x8',)",
    "--config.data.examples=256",
    "--config.model.depth=2",
    "--config.model.width=16",
    "--config.heads.channels=8",
    "--config.heads.groups=4",
    "--config.pretrain.steps=40",
    "--config.pretrain.batch_size=16",
    "--config.synthesize.samples=64",
    "--config.synthesize.steps=4",
    "--config.synthesize.records_per_shard=16",
    "--config.finetune.steps=12",
    "--config.finetune.batch_size=16",
    "--config.distil.steps=40",
    "--config.distil.batch_size=16",
    "--config.checkpoint.every=5",
    "--config.log.every=5",
    "--config.log.samples_every=0",
    "--config.evaluate.samples=40",
    "--config.evaluate.student_steps=(1,)",
    "--config.evaluate.teacher_steps=(4,)",
    "--config.evaluate.resamples=2",
)


_TRACEBACK = 4000
"""Characters of a traceback that are kept."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a job ended: exit codes of its processes, what they printed, and after how long."""

    codes: tuple[int, ...]
    told: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The line that says why, if there is one."""
        lines = [line for line in self.told.splitlines() if line.startswith("error: ")]
        return lines[-1] if lines else ""

    @property
    def traceback(self) -> str:
        """The first traceback that a user saw, without its first line; empty if there was none."""
        _, found, after = self.told.partition("Traceback (most recent call last)")
        return after[:_TRACEBACK] if found else ""


class Job:
    """The processes of one command."""

    def __init__(
        self,
        workdir: Path,
        programs: Path,
        processes: int = 1,
        devices: int = 2,
        arguments: Sequence[str] = (),
    ):
        """Starts the processes.

        Args:
          workdir: the run's workdir; logs are written beside it.
          programs: folder of compiled programs, shared by all trials.
          processes: number of processes.
          devices: number of simulated devices in each process.
          arguments: flags in addition to those of every trial.
        """
        self._began = time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "ladd_jax.main", *_CONFIG, f"--workdir={workdir}"]
        command += [f"--config.compilation_cache={programs}", *arguments]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            # XLA splits a sum into this many parts; without it, by the machine's number of cores.
            "NPROC": "4",
        }
        self._logs = [workdir.parent / f"{workdir.name}.{index}.log" for index in range(processes)]
        self.processes = []
        for index, log in enumerate(self._logs):
            own = dict(environment)
            if processes > 1:
                own |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(index),
                }
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(command, env=own, stdout=file, stderr=subprocess.STDOUT)
                )

    def told(self) -> str:
        """What the processes have printed so far."""
        return "\n".join(log.read_text(errors="replace") for log in self._logs)

    def running(self) -> bool:
        """Whether a process still runs."""
        return any(process.poll() is None for process in self.processes)

    def send(self, number: int) -> None:
        """Sends a signal to all processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, seconds: float = 1800) -> Ended:
        """Waits for the processes, kills those that run for longer, and says how they ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        self.send(signal.SIGKILL)
        codes = tuple(process.wait() for process in self.processes)
        return Ended(codes, self.told(), time.monotonic() - self._began)

    def run_for(self, seconds: float) -> None:
        """Returns this many seconds after the start, or when all processes have ended."""
        deadline = self._began + seconds
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.005)

    def wait_for(self, words: str, seconds: float = 600) -> None:
        """Returns when a process has printed these words, all have ended, or time is up."""
        deadline = time.monotonic() + seconds
        while self.running() and words not in self.told() and time.monotonic() < deadline:
            time.sleep(0.01)


def place(told: str) -> str:
    """The stage that a job was in: the last one that its output names."""
    last, name = max((told.rfind(f"stage {name}"), name) for name in STAGES)
    return name if last >= 0 else "start"

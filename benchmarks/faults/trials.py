"""The trials: what each does to a job, and what must be true afterwards."""

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.bits import compared, contents
from benchmarks.faults.job import Job, place
from ladd_jax.parallel.stopping import EXIT_CODE

LOST_SECONDS = 60
"""Seconds within which the other processes have to name one that is lost."""


@dataclasses.dataclass
class Trials:
    """What all trials share: undisturbed runs and compiled programs."""

    root: Path

    @property
    def programs(self) -> Path:
        """The folder of compiled programs."""
        return self.root / "programs"

    def undisturbed(self, processes: int) -> tuple[dict[str, str], float]:
        """Digests of an undisturbed run, and the seconds that it takes with compiled programs."""
        workdir = self.root / f"whole_{processes}"
        file = self.root / f"whole_{processes}.json"
        if not file.exists():
            for _ in range(2):
                shutil.rmtree(workdir, ignore_errors=True)
                ended = self.job(workdir, processes).wait()
                if any(ended.codes):
                    raise SystemExit(f"the undisturbed run failed: {ended.told[-2000:]}")
            file.write_text(json.dumps([contents(workdir), ended.seconds]))
        found, seconds = json.loads(file.read_text())
        return found, seconds

    def job(self, workdir: Path, processes: int, *arguments: str) -> Job:
        """Starts the job on two devices in all, divided among the processes."""
        return Job(workdir, self.programs, processes, 2 // processes, arguments)

    def ended(self, workdir: Path, processes: int, *arguments: str) -> str:
        """Runs the same command to its end, and compares the run with an undisturbed one."""
        ended = self.job(workdir, processes, *arguments).wait()
        if any(ended.codes):
            return f"exit codes {ended.codes}: {ended.sentence or ended.told[-300:]}"
        return compared(contents(workdir), self.undisturbed(processes)[0])


Made = tuple[str, dict[str, Any]]
"""The outcome in words, and a record of what was done."""


def kill(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Starts the job one to three times and sends all processes SIGKILL at a random moment."""
    processes = draw.choice((1, 2))
    _, seconds = trials.undisturbed(processes)
    lives = []
    for _ in range(draw.randint(1, 3)):
        job = trials.job(workdir, processes)
        moment = draw.uniform(0, seconds)
        job.run_for(moment)
        job.send(signal.SIGKILL)
        job.wait()
        lives.append({"seconds": round(moment, 2), "at": place(job.told())})
    return trials.ended(workdir, processes), {"processes": processes, "lives": lives}


def stop(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Sends SIGTERM or SIGINT at a random moment: the job ends without traceback and can go on."""
    processes = draw.choice((1, 2))
    _, seconds = trials.undisturbed(processes)
    sent = draw.choice((signal.SIGTERM, signal.SIGINT))
    job = trials.job(workdir, processes)
    # Before this is printed, a signal ends Python itself.
    job.wait_for("stage ")
    time.sleep(draw.uniform(0, 0.7 * seconds))
    at = place(job.told())
    job.send(sent)
    ended = job.wait(120)
    told = {"processes": processes, "signal": sent.name, "at": at, "codes": ended.codes}
    if ended.traceback:
        return "a traceback", told | {"traceback": ended.traceback}
    if set(ended.codes) - {0, EXIT_CODE}:
        return f"exit codes {ended.codes}", told
    return trials.ended(workdir, processes), told


def damage(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Damages or removes a file of the newest checkpoint: the one before it has to be used."""
    job = trials.job(workdir, 1)
    job.wait_for("stage distil")
    checkpoints = workdir / "distil" / "checkpoints"
    deadline = time.monotonic() + 300
    while job.running() and len(_steps(checkpoints)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    job.send(signal.SIGTERM)
    job.wait(120)
    steps = _steps(checkpoints)
    if len(steps) < 2:
        return f"{len(steps)} checkpoints at the end: nothing to damage", {}
    files = sorted(file for file in (checkpoints / str(steps[-1])).rglob("*") if file.is_file())
    # Empty files are Orbax's markers.
    file = draw.choice([file for file in files if file.stat().st_size])
    how = draw.choice(("cut", "empty", "flipped", "removed"))
    data = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    else:
        at = draw.randrange(len(data))
        if how == "flipped":
            data[at] ^= 1 << draw.randrange(8)
        file.write_bytes({"cut": data[:at], "empty": b"", "flipped": data}[how])
    told = {"file": str(file.relative_to(checkpoints)), "how": how, "steps": steps}
    return trials.ended(workdir, 1), told


def _steps(checkpoints: Path) -> list[int]:
    if not checkpoints.exists():
        return []
    return sorted(int(folder.name) for folder in checkpoints.iterdir() if folder.name.isdecimal())


def lost(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Kills or freezes one of two processes in training: the other has to end and name it."""
    stage = draw.choice(("pretrain", "distil"))
    number = draw.choice((signal.SIGKILL, signal.SIGSTOP))
    victim = draw.choice((0, 1))
    job = trials.job(workdir, 2, f"--config.{stage}.steps=100000")
    deadline = time.monotonic() + 600
    while job.running() and not _steps(workdir / stage / "checkpoints"):
        time.sleep(0.1)
        if time.monotonic() > deadline:
            break
    time.sleep(draw.uniform(0, 5))
    job.processes[victim].send_signal(number)
    began = time.monotonic()
    other = job.processes[1 - victim]
    with contextlib.suppress(subprocess.TimeoutExpired):
        other.wait(2 * LOST_SECONDS)
    seconds = time.monotonic() - began
    code = other.poll()
    job.send(signal.SIGKILL)
    ended = job.wait()
    told = {
        "stage": stage,
        "signal": number.name,
        "process": victim,
        "code": code,
        "seconds": round(seconds, 1),
        "sentence": ended.sentence,
    }
    if code is None or seconds > LOST_SECONDS:
        return f"the other process was still there after {seconds:.0f} s", told
    if f"process {victim}" not in ended.sentence:
        return "the lost process is not named", told
    return "named in time", told


def diverged(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Trains at a rate that breaks the parameters: one sentence, no checkpoint, and then goes on.

    The run goes on at the config's own, lower rate.
    """
    stage = draw.choice(("pretrain", "distil"))
    rate = draw.choice(("1e38", "1e30"))
    ended = trials.job(workdir, 1, f"--config.{stage}.optimizer.learning_rate={rate}").wait()
    told = {"stage": stage, "rate": rate, "codes": ended.codes, "sentence": ended.sentence}
    if ended.traceback or ended.codes != (2,):
        return f"exit codes {ended.codes}", told
    if _steps(workdir / stage / "checkpoints"):
        return "a checkpoint was saved", told
    return trials.ended(workdir, 1), told


def elastic(trials: Trials, draw: random.Random, workdir: Path) -> Made:
    """Continues a run on other processes, devices and meshes: losses have to be as on one mesh."""
    meshes = [
        (1, 8, ("data=8",)),
        (2, 2, ("data=2", "fsdp=2")),
        (1, 1, ("data=1",)),
        (2, 4, ("data=1", "fsdp=8")),
        (1, 4, ("data=2", "tensor=2")),
    ]
    draw.shuffle(meshes)
    lives: list[dict[str, Any]] = []
    for processes, devices, mesh in meshes[:3]:
        reached = _steps(workdir / "distil" / "checkpoints")
        sizes = [f"--config.mesh.{axis}" for axis in mesh]
        job = Job(workdir, trials.programs, processes, devices, sizes)
        deadline = time.monotonic() + 600
        while job.running() and _steps(workdir / "distil" / "checkpoints") == reached:
            time.sleep(0.005)
            if time.monotonic() > deadline:
                break
        job.send(signal.SIGTERM)
        ended = job.wait(300)
        lives.append(
            {
                "processes": processes,
                "devices": devices * processes,
                "mesh": ", ".join(mesh),
                "codes": ended.codes,
                "steps": _steps(workdir / "distil" / "checkpoints")[-1:],
            }
        )
        if set(ended.codes) - {0, EXIT_CODE}:
            return f"exit codes {ended.codes}: {ended.sentence}", {"lives": lives}
    ended = trials.job(workdir, 1).wait()
    if any(ended.codes):
        return f"exit codes {ended.codes}: {ended.sentence}", {"lives": lives}
    # Sums over devices are rounded in another order, so bits differ, and losses are compared.
    trials.undisturbed(1)
    ours, theirs = (_losses(path) for path in (workdir, trials.root / "whole_1"))
    difference = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    outcome = "as on one mesh" if difference < 0.05 else "other losses"
    return outcome, {"lives": lives, "largest_relative_difference": difference}


def _losses(workdir: Path) -> list[float]:
    lines = (workdir / "distil" / "history.jsonl").read_text().splitlines()
    found = {record["step"]: record for record in map(json.loads, lines)}
    # Other records are of steps at which a run was stopped, and means over fewer steps.
    return [found[step]["loss/discriminator"] for step in sorted(found) if step % 5 == 0]


def on_disk(how: str) -> Callable[[Trials, random.Random, Path], Made]:
    """A trial on a disk of its own, in a user namespace, where mounting needs no root."""

    def trial(trials: Trials, draw: random.Random, workdir: Path) -> Made:
        _, seconds = trials.undisturbed(1)
        workdir.mkdir(parents=True)
        moment = round(draw.uniform(0, 0.9 * seconds), 2)
        namespace = ["unshare", "--user", "--map-root-user", "--mount"]
        command = [sys.executable, "-m", "benchmarks.faults.small_disk", how, str(moment)]
        ended = subprocess.run(
            [*namespace, *command, str(workdir), str(trials.root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            return f"no such disk: {ended.stderr[-300:]}", {"seconds": moment}
        found = json.loads(ended.stdout.splitlines()[-1])
        told = {name: found[name] for name in ("at", "codes", "sentence")} | {"seconds": moment}
        if found["traceback"]:
            return "a traceback", told | {"traceback": found["traceback"]}
        # The code is 0 if all that was left to write went to files that were open.
        if found["codes"] not in ([0], [2]):
            return f"exit codes {found['codes']}", told
        return found["again"], told

    return trial


KINDS: dict[str, tuple[Callable[[Trials, random.Random, Path], Made], int, str]] = {
    "kill": (kill, 40, "same bits"),
    "stop": (stop, 12, "same bits"),
    "damage": (damage, 12, "same bits"),
    "lost": (lost, 6, "named in time"),
    "full": (on_disk("full"), 6, "same bits"),
    "read_only": (on_disk("read_only"), 4, "same bits"),
    "vanished": (on_disk("vanished"), 4, "same bits"),
    "diverged": (diverged, 4, "same bits"),
    "elastic": (elastic, 4, "as on one mesh"),
}
"""By name: the trial, how often it is run, and its right outcome."""

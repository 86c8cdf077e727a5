"""`python -m benchmarks.fuzz --minutes=60`: gives damaged files to everything that reads files.

Makes small valid inputs for each reader and changes them at random: flipped bits, cuts, huge
numbers, other types in JSON, odd names, swapped files. A reader passes if it returns a result or
raises an error that is one sentence for the user. Anything else is a finding: another error, a
process that dies, seconds of work, a gigabyte of memory, or records that pass their digests and
are not as they were written.

An input is identified by `--seed`, its reader and its number: `--reader=tars --number=7` reads one
again. Each reader gets the same time. A child process reads while this one watches it. Writes
counts and findings to `--json`.
"""

import collections
import dataclasses
import json
import logging
import math
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from benchmarks.fuzzing.mutations import mutate
from benchmarks.fuzzing.readers import READERS
from benchmarks.fuzzing.seeds import write_all
from benchmarks.result_files import write_result
from ladd_jax.cli.disk_errors import disk_error
from ladd_jax.errors import UserError

_MINUTES = flags.DEFINE_float("minutes", 60.0, "How long to run.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/fuzz.json", "Where to write the result.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all random draws.")
_READER = flags.DEFINE_multi_string("reader", [], "Readers to try. Default: all.")
_NUMBER = flags.DEFINE_integer("number", None, "The one input to read, showing its traceback.")
_KEEP = flags.DEFINE_string("keep", "", "Folder to keep the inputs of findings in.")

_CPU_SECONDS = 5.0
"""Seconds of work on one input above which it counts as a hang."""

_WALL_SECONDS = 120.0
_BYTES = 2**30
"""Bytes of memory that one input may take on top of what the process already has."""

_RECYCLED_BYTES = 4 * 2**30
"""Bytes above which a new process takes over, since libraries keep some memory for each input."""

_SHOWN = 300
"""Characters of an error's message that are kept."""

_ADDRESSES = 32 * 2**30
"""Bytes of address space of a process; libraries reserve more of it than they use."""


@dataclasses.dataclass
class Outcome:
    """What a reader made of an input.

    Attributes:
      kind: `result`, `sentence`, or the kind of a finding.
      told: the beginning of the error's message, or what is wrong.
      seconds: seconds of work.
      changes: how the input differs from its seed.
      where: the last lines of an unexpected error's traceback.
    """

    kind: str
    told: str
    seconds: float
    changes: list[str]
    where: list[str]


def prepare(
    seeds: Path, scratch: Path, name: str, seed: int, number: int
) -> tuple[Path, list[str]]:
    """Makes the input of a number, in its own folder; number 0 is the seed without changes."""
    folder = scratch / "input"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(seeds / READERS[name].seeds, folder)
    rng = random.Random(f"{seed} {name} {number}")
    return folder, mutate(folder, rng) if number else []


def attempt(name: str, folder: Path, changes: list[str]) -> Outcome:
    """Reads an input and says how that ended."""
    reader = READERS[name]
    start = time.process_time()
    kind, told, where = "result", "", list[str]()
    try:
        wrong = reader.check(reader.read(folder), changes)
        if wrong:
            kind, told = "accepted", wrong
    except Exception as error:
        kind, told = "sentence", str(error)[:_SHOWN]
        if not isinstance(error, UserError) and not disk_error(error):
            kind = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:]]
    seconds = time.process_time() - start
    # The input without changes comes first, and its time includes importing libraries.
    if changes and seconds > _CPU_SECONDS:
        kind, told = "hang", f"{seconds:.1f} s of work"
    return Outcome(kind, told, seconds, changes, where)


def _work(pipe: Connection, seeds: Path, scratch: Path, seed: int) -> None:
    """Reads each input that it is sent, and sends back the changes and the outcome."""
    # Silences what libraries, some of them in C++, say about damaged files.
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    # The process that watches may notice too late.
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    while True:
        name, number = pipe.recv()
        folder, changes = prepare(seeds, scratch, name, seed, number)
        pipe.send(changes)
        pipe.send(attempt(name, folder, changes))


class Watched:
    """A process that reads, and is killed if it takes too much time or memory."""

    def __init__(self, seeds: Path, scratch: Path, seed: int):
        self._arguments = seeds, scratch, seed
        self._process: Any = None
        self._pipe: Any = None
        self.scratch = scratch
        self._known: set[str] = set()

    def read(self, name: str, number: int) -> Outcome:
        """The outcome of an input of the reader with this name."""
        if self._process is None:
            self._start()
        if number and name not in self._known:
            self._known.add(name)
            first = self._read(name, 0)
            if first.kind != "result":
                return dataclasses.replace(first, kind="seed", told=f"{first.kind} {first.told}")
            if self._process is None:
                self._start()
        return self._read(name, number)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._known = set()

    def _read(self, name: str, number: int) -> Outcome:
        before = self._bytes()
        start = time.monotonic()
        self._pipe.send((name, number))
        changes: list[str] = []
        wrong = ""
        try:
            while not wrong:
                if self._pipe.poll(0.1):
                    found = self._pipe.recv()
                    if isinstance(found, Outcome):
                        if self._bytes() > _RECYCLED_BYTES:
                            self._end()
                        return found
                    changes, start = found, time.monotonic()
                elif time.monotonic() - start > _WALL_SECONDS:
                    wrong = "hang"
                elif number and self._bytes() - before > _BYTES:
                    wrong = "memory"
        except (EOFError, ConnectionResetError):
            self._process.join()
            wrong = f"ended with {self._process.exitcode}"
        self._end()
        return Outcome(wrong, "", time.monotonic() - start, changes, [])

    def _bytes(self) -> int:
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._process = None


def run(names: list[str], seconds: float, seed: int, keep: Path | None) -> dict[str, Any]:
    """Tries all readers, each for the same time, until the seconds are over.

    Returns:
      Numbers of inputs and outcomes by reader, and the findings.
    """
    tried = {name: collections.Counter[str]() for name in names}
    used = dict.fromkeys(names, 0.0)
    findings: list[dict[str, Any]] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=round(seconds), unit="s") as bar:
        seeds = Path(folder, "seeds")
        made = multiprocessing.get_context("spawn").Process(target=write_all, args=(seeds,))
        made.start()
        made.join()
        watched = Watched(seeds, Path(folder, "scratch"), seed)
        while time.monotonic() - start < seconds:
            name = min(used, key=lambda name: used[name])
            number = tried[name].total() + 1
            began = time.monotonic()
            outcome = watched.read(name, number)
            used[name] += time.monotonic() - began
            tried[name][outcome.kind] += 1
            if outcome.kind == "seed":
                # The valid input fails already, so changes to it would show nothing.
                used[name] = math.inf
            if outcome.kind not in ("result", "sentence"):
                findings.append({"reader": name, "number": number} | dataclasses.asdict(outcome))
                bar.write(json.dumps(findings[-1]))
                if keep is not None:
                    place = keep / f"{name.replace(' ', '_')}_{number}"
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(watched.scratch / "input", place, symlinks=True)
            bar.update(round(time.monotonic() - start) - bar.n)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - start),
        "inputs": sum(counts.total() for counts in tried.values()),
        "readers": {
            name: {"inputs": counts.total(), "seconds": round(min(used[name], seconds))}
            | dict(counts)
            for name, counts in tried.items()
        },
        "findings": findings,
    }


def again(name: str, seed: int, number: int) -> None:
    """Reads one input in this process, and lets an error end it."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        write_all(seeds)
        place, changes = prepare(seeds, Path(folder, "scratch"), name, seed, number)
        print("\n".join(changes))
        print(READERS[name].read(place))


def misuse(readers: list[str], number: int | None) -> str:
    """What is wrong with the flags `--reader` and `--number`; empty where nothing is."""
    for name in readers:
        if name not in READERS:
            return f"--reader={name} is not one of {', '.join(READERS)}: use one of them"
    if number is not None and len(readers) != 1:
        return (
            f"--number={number} is an input of one reader and --reader names {len(readers)}: name "
            f"one, such as --reader=tars"
        )
    if number is not None and number < 0:
        return f"--number={number} is below 0: use 0 for the seed, or more for what is made of it"
    return ""


def main(arguments: list[str]) -> None:
    """Tries the readers and writes what was found, or reads one input again."""
    del arguments
    wrong = misuse(_READER.value, _NUMBER.value)
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    # Whatever names an input contains, the hub is not asked.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    names = _READER.value or list(READERS)
    if _NUMBER.value is not None:
        again(names[0], _SEED.value, _NUMBER.value)
        return
    keep = Path(_KEEP.value) if _KEEP.value else None
    found = run(names, 60 * _MINUTES.value, _SEED.value, keep)
    for name, counts in found["readers"].items():
        print(f"  {name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    print(f"  {found['inputs']} inputs, {len(found['findings'])} findings")
    write_result(_JSON.value, found)


if __name__ == "__main__":
    app.run(main)

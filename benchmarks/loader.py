"""`python -m benchmarks.loader`: how fast shards become batches, against reading their bytes raw.

Writes SD3-shaped records (text of 77 x 2048 and 256 x 4096 numbers, latents of 128 x 128 x 16), or
takes those in `--directory`. Reads them alternately in three ways, with as many threads each: all
bytes of the files as they are; the same with a digest of them, which no loader that checks its data
can do without; and all records once, through the loader of training.

Cold, the files' pages are dropped before each reading, so that they come from the disk. Warm, they
are in memory, and raw reading only copies them. If other programs hold the cores, elapsed times say
little; the core-seconds say how fast each way could be. Memory is that of the process after a
quarter of the batches and after all of them. Writes the times to `--json`.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash
from absl import app, flags

from benchmarks.result_files import write_result
from benchmarks.text_records import BUCKET, Form, random_records, write_set
from ladd_jax.data.pipeline import BatchPlan, loader
from ladd_jax.data.shards import Shards

_RECORDS = flags.DEFINE_integer("records", 96, "Records to write.")
_BATCH = flags.DEFINE_integer("batch", 8, "Records in a batch.")
_THREADS = flags.DEFINE_integer("threads", 2, "Threads that read, in each way.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Readings of each kind, alternating.")
_TEXT = flags.DEFINE_enum("text", "float16", ["float32", "float16", "int8"], "Dtype of the text.")
_DIRECTORY = flags.DEFINE_string("directory", "", "Folder to keep the sets in; empty: none.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/loader.json", "Where to write the result.")

_CHUNK = 2**20


def drop_pages(files: list[Path]) -> None:
    """Drops the pages of files, so that the next reading comes from the disk."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_raw(files: list[Path], threads: int, digest: bool = False) -> None:
    """Reads all bytes of files into buffers, and makes digests of them if `digest`."""

    def read(file: Path) -> None:
        buffer = bytearray(_CHUNK)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                if digest:
                    xxhash.xxh3_64_digest(buffer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))


def read_batches(shards: Shards, batch: int, threads: int) -> list[int]:
    """Reads every record once, and returns the process's memory after each batch, in bytes."""
    plan = BatchPlan(shards.sizes, batch, seed=0)
    held = []
    batches = loader(shards, plan, 0, plan.steps_per_epoch, threads=threads)
    for _ in batches:
        held.append(_resident())
    return held


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that work takes, and seconds that cores are busy with it."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def measure(directory: Path) -> dict[str, Any]:
    """Rates of each way, cold and warm, and memory."""
    shards = Shards(directory / "synthesized")
    files = sorted(directory.rglob("*.array_record-*"))
    size = sum(file.stat().st_size for file in files)
    threads, batch = _THREADS.value, _BATCH.value
    held = read_batches(shards, batch, threads)
    found: dict[str, Any] = {
        "bytes": size,
        "records": shards.sizes[BUCKET],
        "memory_after_a_quarter": held[len(held) // 4],
        "memory_at_the_end": held[-1],
        "bytes_of_a_batch": batch * sum(s.bytes_in(BUCKET) for s in shards.arrays.values()),
    }
    for state in ("cold", "warm"):
        times: dict[str, list[float]] = {"raw": [], "raw_with_digests": [], "loader": []}
        busy: dict[str, list[float]] = {name: [] for name in times}
        for _ in range(_REPEATS.value):
            for name, work in (
                ("raw", lambda: read_raw(files, threads)),
                ("raw_with_digests", lambda: read_raw(files, threads, digest=True)),
                ("loader", lambda: read_batches(shards, batch, threads)),
            ):
                if state == "cold":
                    drop_pages(files)
                seconds = _seconds(work)
                times[name].append(seconds[0])
                busy[name].append(seconds[1])

        def over_raw(found: dict[str, list[float]], name: str) -> float:
            return statistics.median(
                raw / ours for raw, ours in zip(found["raw"], found[name], strict=True)
            )

        found[state] = {
            "seconds": times,
            "core_seconds": busy,
            "records_per_core_second": len(held) * batch / statistics.median(busy["loader"]),
            "raw_mb_per_second": size / 1e6 / statistics.median(times["raw"]),
            "loader_mb_per_second": size / 1e6 / statistics.median(times["loader"]),
            "loader_over_raw": over_raw(times, "loader"),
            "by_core_seconds": {
                name: over_raw(busy, name) for name in ("loader", "raw_with_digests")
            },
        }
    return found


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(_DIRECTORY.value or temporary)
        for name, layout in Form(_TEXT.value).layouts(_RECORDS.value, per_shard=8).items():
            write_set(directory / name, layout, random_records)
        os.sync()
        found = measure(directory)
    print(f"{found['records']} records, {found['bytes'] / 1e6:.0f} MB, {_THREADS.value} threads")
    for state in ("cold", "warm"):
        row = found[state]
        cores = row["by_core_seconds"]
        print(
            f"  {state}: loader {row['loader_mb_per_second']:.0f} MB/s, raw "
            f"{row['raw_mb_per_second']:.0f} MB/s, ratio {row['loader_over_raw']:.2f}; by "
            f"core-seconds {cores['loader']:.2f}, and {cores['raw_with_digests']:.2f} for raw "
            f"with digests; a core that does nothing else loads "
            f"{row['records_per_core_second']:.0f} records/s"
        )
    print(
        f"  memory {found['memory_after_a_quarter'] / 1e6:.0f} MB after a quarter of the batches, "
        f"{found['memory_at_the_end'] / 1e6:.0f} MB at the end; a batch is "
        f"{found['bytes_of_a_batch'] / 1e6:.0f} MB"
    )
    setting = {
        "text": _TEXT.value, "batch": _BATCH.value, "threads": _THREADS.value,
        "cores": os.cpu_count(),
    }  # fmt: skip
    write_result(_JSON.value, {"setting": setting} | found)


if __name__ == "__main__":
    app.run(main)

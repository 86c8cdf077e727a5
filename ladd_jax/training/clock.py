"""The speed of steps, measured where they end: on the device."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from ladd_jax.parallel.chips import chip_of

T = TypeVar("T")

AHEAD = 8
"""Steps that the loop may be ahead of the device; each holds a batch in device memory."""


class StepClock:
    """Times of steps, taken by a thread that waits for each in turn, so that the loop need not.

    Use it as a context manager around the loop. Call `next_batch` and `dispatched` for each step,
    `read` where the loop waits for the device anyway, and `resume` when steps go on.
    """

    def __init__(self, mesh: Mesh, steps: int):
        """Prepares to time.

        Args:
          mesh: the devices that compute.
          steps: number of steps to do.
        """
        self._devices = mesh.size
        self._local = mesh.local_devices
        chips = [chip_of(device) for device in mesh.devices.flat]
        known = [chip.bf16_flops for chip in chips if chip is not None]
        self._peak_flops = sum(known) if len(known) == len(chips) else None
        self._to_do = steps
        self._done = 0
        self._watcher = ThreadPoolExecutor(1, "step-clock")
        self._free = threading.Semaphore(AHEAD)
        self._began = time.monotonic()
        self.resume()

    def __enter__(self) -> "StepClock":
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.shutdown(cancel_futures=True)

    def resume(self) -> None:
        """Begins an interval; the time since the last `read` belongs to none."""
        self._resumed = time.monotonic()
        self._waits: list[tuple[float, float]] = []
        self._ends: list[Future[float]] = []
        self._images = 0
        self._flops = 0

    def next_batch(self, batches: Iterator[T]) -> T:
        """The next batch, once the device is at most `AHEAD` steps behind."""
        self._free.acquire()
        asked = time.monotonic()
        batch = next(batches)
        self._waits.append((asked, time.monotonic()))
        return batch

    def dispatched(self, results: Any, images: int, flops: int) -> None:
        """Notes a step that was given to the device.

        Args:
          results: arrays that the step returns and nobody donates.
          images: images in its global batch.
          flops: model FLOPs of those images.
        """
        self._ends.append(self._watcher.submit(self._end, results))
        self._images += images
        self._flops += flops

    def _end(self, results: Any) -> float:
        try:
            jax.block_until_ready(results)
            return time.monotonic()
        finally:
            self._free.release()

    def read(self) -> dict[str, float]:
        """Waits for the device, and returns the speed of the steps since the last `resume`.

        A step lasts from the end of the one before to its own end. Time in it during which the
        device stood still, because the batch was not there yet, counts as waiting for data.

        Returns:
          `images_per_second` of all devices, `step_seconds/p50` and `/p95`, `data_wait` as share of
          the time, `model_tflops` a second of each device, `mfu` as share of the published bf16
          peak (of devices in `parallel/chips.py` only), `memory_gib/in_use` and `/peak` of the
          fullest local device (where the backend reports it), `hours_left` at the pace since the
          start, including all that happened between steps.
        """
        ends = [self._resumed, *(end.result() for end in self._ends)]
        seconds = ends[-1] - ends[0]
        waited = sum(
            max(0.0, got - max(asked, before))
            for (asked, got), before in zip(self._waits, ends[:-1], strict=True)
        )
        p50, p95 = np.percentile(np.diff(ends), (50, 95))
        self._done += len(self._ends)
        pace = (time.monotonic() - self._began) / self._done
        speed = {
            "images_per_second": self._images / seconds,
            "step_seconds/p50": float(p50),
            "step_seconds/p95": float(p95),
            "data_wait": waited / seconds,
            "model_tflops": self._flops / seconds / self._devices / 1e12,
            "hours_left": (self._to_do - self._done) * pace / 3600,
        }
        if self._peak_flops is not None:
            speed["mfu"] = self._flops / seconds / self._peak_flops
        return speed | _memory(self._local)


def _memory(devices: Any) -> dict[str, float]:
    """Memory of the fullest device in GiB, empty where the backend does not report it (a CPU)."""
    told = [stats for device in devices if (stats := device.memory_stats())]
    fields = {"memory_gib/in_use": "bytes_in_use", "memory_gib/peak": "peak_bytes_in_use"}
    return {
        name: max(stats[field] for stats in told) / 2**30
        for name, field in fields.items()
        if told and all(field in stats for stats in told)
    }

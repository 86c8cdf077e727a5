"""Processes many items on all cores, in order and with few of them in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int = 0
) -> Iterator[Result]:
    """`map` with threads that work ahead of the reader of the results.

    It is meant for work that releases Python's lock, such as decoding pictures. Items are taken in
    the calling thread, and at most two for each thread are in work.

    Args:
      work: function of an item. Its error is raised where its result would come.
      items: items in order.
      threads: number of threads; 0: one for each core that this process may use.
    """
    threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) >= 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

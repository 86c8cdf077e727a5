"""Work on many items by all cores, in order and with few of them in memory."""

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
    """`map`, by threads that are ahead of who reads the results.

    For work that leaves Python's lock to others, as decoding pictures does. Items are taken in this
    thread, and at most two for each thread are in hand.

    Args:
      work: what is done with an item. An error of it comes where its result would.
      items: items in order.
      threads: how many; 0 is one for each core that this process may use.
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

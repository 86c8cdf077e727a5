"""Batches the requests of many sessions into a few fixed sizes, on one thread.

The engine knows nothing about networks or pages: `make` does the work, for rows of one kind.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ladd_jax.errors import UserError

_LOG = logging.getLogger(__name__)

Make = Callable[[Any, Sequence[Any]], Sequence[Any]]
"""Makes a result from each row, all of one kind; a `UserError` stands for a row that failed."""


class SupersededError(Exception):
    """A request was dropped: its session has asked for something else since."""


@dataclass(eq=False)
class _Request:
    session: str
    kind: Hashable
    rows: Sequence[Any]
    future: Future[list[Any]] = field(default_factory=Future)


class Engine:
    """A bounded queue of requests, and the thread that works through it, oldest first.

    Waiting requests of the same kind as the oldest join its batch as long as they fit the largest
    size. A batch is padded to one of the sizes with copies of its own rows, so that only one
    program is ever compiled for each kind and size.
    """

    def __init__(self, make: Make, sizes: Sequence[int], bound: int):
        """Starts the thread.

        Args:
          make: makes the results of a batch.
          sizes: the batch sizes that `make` is called with.
          bound: largest number of requests that may wait.
        """
        self._make, self._sizes, self._bound = make, sorted(sizes), bound
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def largest(self) -> int:
        """The largest batch size, which is also the most rows that a request may have."""
        return self._sizes[-1]

    def submit(self, session: str, kind: Hashable, rows: Sequence[Any]) -> Future[list[Any]]:
        """Requests results for rows of one kind.

        A request of the same session that still waits is dropped: its future raises
        `SupersededError`.

        Args:
          session: name of the session.
          kind: kind of the rows; all rows in a batch have the same.
          rows: the rows, one for each result.

        Returns:
          a future of the results, one for each row; if a row failed, it raises that UserError.

        Raises:
          UserError: there are too many rows, the queue is full, or the engine is closed.
        """
        if not 0 < len(rows) <= self.largest:
            raise UserError(
                f"{len(rows)} pictures at once and the limit is {self.largest}: ask for fewer"
            )
        with self._changed:
            if self._closed:
                raise UserError("the server is stopping: start it again")
            before = [request for request in self._waiting if request.session == session]
            if len(self._waiting) - len(before) >= self._bound:
                raise UserError(
                    f"{self._bound} requests are waiting, which is the limit: try again in a moment"
                )
            request = _Request(session, kind, rows)
            for old in before:
                self._waiting.remove(old)
            self._waiting.append(request)
            self._changed.notify()
        for old in before:
            old.future.set_exception(SupersededError())
        return request.future

    def drop(self, session: str) -> None:
        """Drops the waiting requests of a session, for example when it has ended."""
        with self._changed:
            gone = [request for request in self._waiting if request.session == session]
            self._waiting = [request for request in self._waiting if request.session != session]
        for request in gone:
            request.future.set_exception(SupersededError())

    def close(self) -> None:
        """Ends the thread after the current batch, and drops the requests that wait."""
        with self._changed:
            self._closed = True
            gone, self._waiting = self._waiting, []
            self._changed.notify()
        for request in gone:
            request.future.set_exception(SupersededError())
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                batch = self._take()
            self._finish(batch)

    def _take(self) -> list[_Request]:
        """The oldest request, and the waiting ones of its kind that fit into the same batch."""
        taken: list[_Request] = []
        room = self.largest
        for request in self._waiting:
            if request.kind == self._waiting[0].kind and len(request.rows) <= room:
                taken.append(request)
                room -= len(request.rows)
        self._waiting = [request for request in self._waiting if request not in taken]
        return taken

    def _finish(self, batch: list[_Request]) -> None:
        rows = [row for request in batch for row in request.rows]
        size = next(size for size in self._sizes if size >= len(rows))
        padded = [rows[i % len(rows)] for i in range(size)]
        try:
            made = list(self._make(batch[0].kind, padded))
        # Whatever went wrong, the sessions of this batch are told, and the next batch goes on.
        except Exception as error:
            if not isinstance(error, UserError):
                _LOG.exception("serve: a batch failed")
            made = [error] * size
        for request in batch:
            own, made = made[: len(request.rows)], made[len(request.rows) :]
            wrong = next((result for result in own if isinstance(result, Exception)), None)
            if wrong is None:
                request.future.set_result(own)
            else:
                request.future.set_exception(wrong)

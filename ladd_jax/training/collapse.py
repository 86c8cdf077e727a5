"""A student that collapses, seen in its metrics."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ladd_jax.errors import UserError
from ladd_jax.parallel.processes import as_process_0

_LOG = logging.getLogger(__name__)


class CollapsedError(UserError):
    """Metrics say that training no longer leads anywhere.

    Attributes:
      finding: what the metrics say.
      since: step of the first of the records that say so.
      of_heads: whether the finding is that heads always win; otherwise the student left its band.
    """

    def __init__(self, finding: str, since: int, of_heads: bool, end: str):
        """Joins the finding and what follows from it into a sentence."""
        super().__init__(f"{finding}; {end}")
        self.finding = finding
        self.since = since
        self.of_heads = of_heads


class CollapseWatch:
    """Looks at each record for heads that always win and for a student that drifts off.

    A finding is what so many `records` in a row have in common:

    - `accuracy` is `accuracy` or more: the student learns nothing from heads that are never wrong.
    - `x0_hat_std` is not within `lowest` to `highest` times the first record's: contrast is lost or
      blows up.
    - `preview/seed_spread/N` is below `lowest` times the first preview's: all seeds of a prompt
      give nearly the same picture.
    """

    def __init__(
        self,
        history: Iterable[Mapping[str, Any]],
        *,
        records: int,
        accuracy: float,
        lowest: float,
        highest: float,
        stop: bool,
    ):
        """Begins where a training begins or goes on.

        Args:
          history: the records until now.
          records: number of records in a row that make a finding.
          accuracy: accuracy of the heads from which they always win.
          lowest: share of the first value below which a metric is outside its band.
          highest: multiple of the first value above which it is.
          stop: whether a finding stops the training, and does so again after as many further
            records if it goes on; otherwise a finding is a warning, once.
        """
        self._records = records
        self._accuracy, self._lowest, self._highest = accuracy, lowest, highest
        self._stop = stop
        self._first: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._since: dict[str, int] = {}
        for record in history:
            self._findings(record)

    def see(self, record: Mapping[str, Any]) -> None:
        """Warns of a new finding in a record.

        Raises:
          CollapsedError: there is one, and it is to stop the training. All processes raise it.
        """
        found = self._findings(record)
        new = {name: told for name, told in found if self._is_new(self._count[name])}
        told = (
            f"in {self._records} records up to step {record['step']} {' and '.join(new.values())}: "
            f"lower the learning rate, or see the table of sick runs in docs/tuning.md"
        )
        if self._stop and as_process_0(bool(new)):
            raise CollapsedError(
                told,
                since=min((self._since[name] for name in new), default=record["step"]),
                of_heads=new.keys() == {"accuracy"},
                end="the same command goes on from the last checkpoint",
            )
        if new:
            _LOG.warning("%s", told)

    def _is_new(self, count: int) -> bool:
        """Whether a finding in this many records in a row is to be reported."""
        return count % self._records == 0 if self._stop else count == self._records

    def _findings(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The metrics outside their bands, by name and in words; counts them."""
        found = []
        for name, value in record.items():
            told = self._outside(name, value)
            if told is None:
                continue
            self._count[name] = self._count.get(name, 0) + 1 if told else 0
            if self._count[name] == 1:
                self._since[name] = record["step"]
            if told:
                found.append((name, told))
        return found

    def _outside(self, name: str, value: Any) -> str | None:
        """How a metric is outside its band, in words; empty inside, None if it has no band."""
        if name == "accuracy":
            if value < self._accuracy:
                return ""
            return f"accuracy is {value:.3f} and the limit is {self._accuracy:g}"
        if name != "x0_hat_std" and not name.startswith("preview/seed_spread/"):
            return None
        first = self._first.setdefault(name, value)
        if value < self._lowest * first:
            return (
                f"{name} is {value:.3g}, less than {self._lowest:g} times its {first:.3g} at first"
            )
        if name == "x0_hat_std" and value > self._highest * first:
            return (
                f"{name} is {value:.3g}, more than {self._highest:g} times its {first:.3g} at first"
            )
        return ""

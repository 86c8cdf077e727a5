"""The interface of metrics: a number from samples and the pictures they are compared with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ladd_jax.evaluation.seen import Seen

Measure = Callable[[Sequence[Seen], Sequence[Seen]], float | None]
"""`measure(samples, reference)` gives the value, from one `Seen` per bucket in each, with the same
buckets in both. It is None if there is nothing to measure, for example no text."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a table.

    Attributes:
      heading: its name in tables.
      measure: function that computes it.
      reference: what samples are compared with: `generator`, the data generator's held-out samples,
        `real`, held-out real pictures, or empty for nothing.
      meaning: an explanation for the reader of a table.
      ratios: ratios that tables show beside the value, by heading. The value is divided by that of
        the generator's own samples (`generator`), of the data generator's longest sampling
        (`teacher`), or of the untrained student at the same steps (`untrained`).
      pixels: whether it looks at pixels, and not only at features.
    """

    heading: str
    measure: Measure
    meaning: str
    reference: str = "generator"
    ratios: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pixels: bool = False

"""What a metric is: a number from pictures, and from others that they are compared with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ladd_jax.evaluation.seen import Seen

Measure = Callable[[Sequence[Seen], Sequence[Seen]], float | None]
"""`(samples, reference) -> value`, each one `Seen` for each bucket, the same buckets in both; None
where there is nothing to measure on, such as no text."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a table.

    Attributes:
      heading: its name in tables.
      measure: computes it.
      reference: what samples are compared with: `generator`, the data generator's held-out samples,
        `real`, held-out real pictures, or nothing.
      meaning: a sentence for the reader of a table.
      ratios: what its value is divided by in tables, beside the value, by heading: the value of the
        generator's own samples (`generator`), of the data generator's longest sampling (`teacher`),
        or of the untrained student at the same steps (`untrained`).
      pixels: whether it looks at pictures, and not at their features alone.
    """

    heading: str
    measure: Measure
    meaning: str
    reference: str = "generator"
    ratios: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pixels: bool = False

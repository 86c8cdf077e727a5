"""How well pictures fit their prompts."""

from collections.abc import Sequence

import numpy as np

from ladd_jax.evaluation.seen import Seen


def measure(samples: Sequence[Seen], reference: Sequence[Seen]) -> float | None:
    """Mean over buckets of the extractor's `alignment`; None where it reads no text."""
    del reference
    values = [np.mean(part.alignment) for part in samples if part.alignment is not None]
    return float(np.mean(values)) if values else None

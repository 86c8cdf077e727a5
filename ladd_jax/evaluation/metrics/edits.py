"""How far edited pictures are from what they should be.

n pictures, H W rows and columns.
"""

import numpy as np

EDIT_ERROR, KEPT_ERROR = "edit_error", "kept_error"

# Of values in [-1, 1]: true edits of decoded or compressed pictures leave no pixel quite the same.
_SAME = 0.05


def errors(images: np.ndarray, sources: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Root mean squares of distances of each picture, as it is shown, in units of [-1, 1].

    - `edit_error`: to the true edited picture.
    - `kept_error`: to the source, at the pixels that the true edit has left as they were.

    Args:
      images: float32 `[n, H, W, C]`; what is beyond [-1, 1] is clipped.
      sources: the pictures that were edited.
      truths: the true edited pictures.

    Returns:
      float64 `[n]` each.
    """
    shown, before, after = (
        np.clip(each.astype(np.float64), -1, 1) for each in (images, sources, truths)
    )
    kept = np.all(np.abs(before - after) <= _SAME, axis=-1, keepdims=True)
    return {
        EDIT_ERROR: np.sqrt(np.mean(np.square(shown - after), axis=(1, 2, 3))),
        KEPT_ERROR: np.sqrt(
            np.sum(kept * np.square(shown - before), axis=(1, 2, 3))
            / np.maximum(kept.sum(axis=(1, 2, 3)) * images.shape[-1], 1)
        ),
    }

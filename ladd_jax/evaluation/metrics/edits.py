"""How far edited pictures are from what they should be.

n pictures, H W rows and columns.
"""

import numpy as np

EDIT_ERROR, KEPT_ERROR = "edit_error", "kept_error"

# Tolerance, for values in [-1, 1], since decoding or compression changes every pixel a little.
_SAME = 0.05


def errors(images: np.ndarray, sources: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Root mean square distances of each picture as shown, that is clipped, in units of [-1, 1].

    - `edit_error`: to the true edited picture.
    - `kept_error`: to the source, at the pixels that the true edit leaves unchanged.

    Args:
      images: float32 `[n, H, W, C]`; values beyond [-1, 1] are clipped.
      sources: the pictures that were edited.
      truths: the true edited pictures.

    Returns:
      both errors by name, float64 `[n]` each.
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

"""A quick preview of SD3's latents as colours, without the autoencoder.

H W latent grid, C channels.
"""

import numpy as np

# Red, green and blue for each of the 16 latent channels, from Stability AI's reference code
# (github.com/Stability-AI/sd3.5, sd3_impls.py, decode_latent_to_preview).
_FACTORS = np.array(
    [
        [-0.0645, 0.0177, 0.1052],
        [0.0028, 0.0312, 0.0650],
        [0.1848, 0.0762, 0.0360],
        [0.0944, 0.0360, 0.0889],
        [0.0897, 0.0506, -0.0364],
        [-0.0020, 0.1203, 0.0284],
        [0.0855, 0.0118, 0.0283],
        [-0.0539, 0.0658, 0.1047],
        [-0.0057, 0.0116, 0.0700],
        [-0.0412, 0.0281, -0.0039],
        [0.1106, 0.1171, 0.1220],
        [-0.0248, 0.0682, -0.0481],
        [0.0815, 0.0846, 0.1207],
        [-0.0120, -0.0055, -0.0867],
        [-0.0749, -0.0634, -0.0456],
        [-0.1418, -0.1457, -0.1259],
    ],
    np.float32,
)


def preview(latents: np.ndarray) -> np.ndarray:
    """A pixel for each place of latents, in approximately the colours that it decodes to.

    Args:
      latents: float32 `[..., H, W, C]`, shifted and scaled as the transformer reads them.

    Returns:
      float32 `[..., H, W, 3]` in [-1, 1]. Colours are only known for 16 channels; for others the
      first three channels are shown, or only the first, `[..., H, W, 1]`.
    """
    channels = latents.shape[-1]
    if channels == len(_FACTORS):
        colors = latents @ _FACTORS
    else:
        colors = latents[..., : 3 if channels >= 3 else 1]
    return np.clip(colors, -1, 1)

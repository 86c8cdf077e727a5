"""What the layouts of SD3's transformer have in common: how blocks make stacks.

The two layouts, of diffusers and of Stability AI, give names; see `weights.layout`.
"""

from collections.abc import Callable

import jax

from ladd_jax.models.base import Params
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.layout import only, patch_kernel, same, stacked


def network_layout(
    config: MMDiTConfig, shapes: Params, top: Params, block: Callable[[int, bool], Params]
) -> Params:
    """The layout of a network.

    Args:
      config: the network's architecture.
      shapes: the network's shapes.
      top: layout of the layers outside of blocks.
      block: `block(number, last)`: layout of a block with all options; `last` is the network's.
    """
    layout = dict(top)
    for name, inner in shapes.items():
        if name == "last_block":
            layout[name] = block(config.depth - 1, True)
        elif name.startswith("blocks_"):
            start = int(name.removeprefix("blocks_"))
            count = jax.tree.leaves(inner)[0].shape[0]
            layout[name] = stacked([block(start + i, False) for i in range(count)])
    return only(layout, shapes)


def patches(name: str, patch: int) -> Params:
    """The embedding of patches, a convolution in the files."""
    return {"kernel": patch_kernel(f"{name}.weight", patch), "bias": same(f"{name}.bias")}


def rms_norm(name: str) -> Params:
    """A normalisation with a scale alone."""
    return {"scale": same(f"{name}.weight")}

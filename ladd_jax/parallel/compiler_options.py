"""XLA's options for programs, beyond those of XLA_FLAGS."""

import os

_LEVEL = "xla_backend_optimization_level"


def compiler_options(device_kind: str) -> dict[str, bool | int]:
    """The options of a training step for one kind of device.

    Args:
      device_kind: the devices' `jax.Device.device_kind`, such as `NVIDIA H200`.
    """
    if device_kind.startswith("NVIDIA"):
        # This fusion writes a product straight into the stack that a scan keeps for its backward
        # pass, and computes the same product again for whatever reads it at once: that costs more
        # than a copy.
        return {"xla_gpu_enable_dynamic_slice_fusion": False}
    return forward_options(device_kind)


def forward_options(device_kind: str) -> dict[str, bool | int]:
    """The options of a program without a backward pass for one kind of device."""
    if device_kind == "cpu" and _LEVEL not in os.environ.get("XLA_FLAGS", ""):
        # Matrix products are library calls: what the compiler does above this level makes no step
        # faster, and for small networks it takes longer than many steps do.
        return {_LEVEL: 1}
    return {}

"""XLA's options for a step's program, beyond those of XLA_FLAGS."""


def compiler_options(device_kind: str) -> dict[str, bool]:
    """The options for one kind of device.

    Args:
      device_kind: the devices' `jax.Device.device_kind`, such as `NVIDIA H200`.
    """
    if not device_kind.startswith("NVIDIA"):
        return {}
    # This fusion writes a product straight into the stack that a scan keeps for its backward pass,
    # and computes the same product again for whatever reads it at once: that costs more than a
    # copy.
    return {"xla_gpu_enable_dynamic_slice_fusion": False}

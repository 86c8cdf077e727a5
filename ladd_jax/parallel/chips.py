"""Published figures of accelerators: what time and memory are measured against.

A device of JAX is one chip on all of these. Memory is counted in GiB, as the devices themselves
report it, where data sheets round to GB.
"""

import dataclasses
from typing import Any

from ladd_jax.errors import UserError

_GIB = 2**30

_CLOUD_TPU = "https://cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: its name in the maker's documents.
      device_kinds: values of `jax.Device.device_kind` for it.
      bf16_flops: peak multiplications and additions a second of dense bfloat16 matrix products.
      hbm_bytes: bytes of its memory.
      hbm_bandwidth: bytes a second between memory and chip.
      interconnect: bytes a second that a chip sends, all its links together; it receives as many
        at the same time. Between TPUs the links of a torus (2 for each of its dimensions), between
        GPUs NVLink.
      source: address of the published figures.
      dcn: bytes a second that a chip sends to other slices over the data-centre network; 0 if
        its maker gives none. The documents give bits, for a chip or for a pod of 256.
    """

    name: str
    device_kinds: tuple[str, ...]
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    interconnect: float
    source: str
    dcn: float = 0.0

    @property
    def usable_bytes(self) -> float:
        """What a program may use of the memory: on a GPU 95 per cent, once JAX is told to."""
        return self.hbm_bytes * (0.95 if self.device_kinds[0].startswith("NVIDIA") else 1)


CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * _GIB, 1200e9, 300e9, f"{_CLOUD_TPU}/v4"),
    Chip(
        "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * _GIB, 819e9, 200e9,
        f"{_CLOUD_TPU}/v5e", dcn=6.4e12 / 256 / 8,
    ),
    Chip(
        "v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * _GIB, 2765e9, 600e9,
        f"{_CLOUD_TPU}/v5p", dcn=50e9 / 8,
    ),
    Chip(
        "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * _GIB, 1600e9, 400e9,
        f"{_CLOUD_TPU}/v6e", dcn=25.6e12 / 256 / 8,
    ),
    Chip(
        "A100 40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * _GIB, 1555e9, 300e9,
        f"{_NVIDIA}/a100",
    ),
    Chip(
        "A100 80GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * _GIB, 2039e9, 300e9,
        f"{_NVIDIA}/a100",
    ),
    Chip(
        "H100", ("NVIDIA H100 80GB HBM3",), 989.4e12, 80 * _GIB, 3350e9, 450e9,
        f"{_NVIDIA}/h100",
    ),
    Chip(
        "H200", ("NVIDIA H200",), 989.4e12, 141 * _GIB, 4800e9, 450e9,
        f"{_NVIDIA}/h200",
    ),
)  # fmt: skip


def chip_named(name: str) -> Chip:
    """The chip with a name such as `v5p` or `H100`.

    Raises:
      UserError: no chip has that name.
    """
    for chip in CHIPS:
        if chip.name == name:
            return chip
    names = ", ".join(chip.name for chip in CHIPS)
    raise UserError(f"chip {name!r} is not one of {names}: use one of them")


def chip_of(device: Any) -> Chip | None:
    """The chip that a `jax.Device` is; None if the table does not have it, as for any CPU."""
    for chip in CHIPS:
        if device.device_kind in chip.device_kinds:
            return chip
    return None

"""Floating point operations of one instruction of a compiled program."""

import math
import re
from collections.abc import Sequence

import numpy as np

from ladd_jax.planning.hlo_text import Array, Instruction
from ladd_jax.planning.jaxpr_flops import ATTENTION_BACKWARD_PRODUCTS, ATTENTION_PRODUCTS

_CUDNN_ATTENTION = {
    "__cudnn$fmhaSoftmax": ATTENTION_PRODUCTS,
    "__cudnn$fmhaSoftmaxBackward": ATTENTION_BACKWARD_PRODUCTS,
}


def matrix_flops(instruction: Instruction, operands: Sequence[Array]) -> float:
    """Multiplications and additions of a matrix product or convolution; 0 for all else.

    A GPU's matrix products may be calls of cuBLAS, whose options name the contracted axes.
    """
    if instruction.opcode == "dot":
        return _product_flops(instruction, operands, instruction.numbers("lhs_contracting_dims"))
    cublas = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    if instruction.opcode == "custom-call" and cublas:
        contracted = tuple(map(int, re.findall(r"\d+", cublas[1])))
        return _product_flops(instruction, operands, contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, operands[0].shape, operands[1].shape)
    return 0.0


def cudnn_attention_flops(target: str, operands: Sequence[Array]) -> float | None:
    """Operations of a call of cuDNN's attention; None if a custom call has another `target`."""
    products = _CUDNN_ATTENTION.get(target)
    if products is None:
        return None
    q, k = (array.shape for array in operands[:2])  # [B, N, K, D/K]
    return 2.0 * products * math.prod(q) * k[1]


def _product_flops(
    instruction: Instruction, operands: Sequence[Array], contracted: tuple[int, ...]
) -> float:
    """Operations of a product, from its result and the axes of its left side that it sums over."""
    summed = math.prod(operands[0].shape[axis] for axis in contracted)
    return 2.0 * math.prod(instruction.result[0].shape) * summed


def _convolution_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Operations on elements that exist: padding and holes between dilated ones are left out.

    The TPU compiler writes every matrix product as a convolution, batch axes as dilated windows.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    window = _window(instruction.attributes)

    def grouped(name: str) -> int:
        count = re.search(rf"{name}_group_count=(\d+)", instruction.attributes)
        return int(count[1]) if count else 1

    result = instruction.result[0].shape
    total = 2.0 * left[labels[1].index("f")] / grouped("feature")
    total *= left[labels[1].index("b")] / grouped("batch")
    total *= result[labels[3].index("f")]
    for k in range(len(labels[1]) - 2):
        base = left[labels[1].index(str(k))]
        taps = right[labels[2].index(str(k))]
        outputs = result[labels[3].index(str(k))]
        stride, low, dilated, spread = (
            window.get(name, {}).get(k, default)
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        places = np.arange(outputs)[:, None] * stride + np.arange(taps) * spread - low
        inside = (places >= 0) & (places % dilated == 0) & (places // dilated < base)
        total *= int(np.count_nonzero(inside))
    return total


def _window(attributes: str) -> dict[str, dict[int, int]]:
    """Fields of the window by name, with a number per spatial dimension; of padding the lower."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = [field.split("=") for field in match[1].split()] if match else []
    return {
        name: {k: int(part.split("_")[0]) for k, part in enumerate(value.split("x"))}
        for name, value in fields
    }

"""Floating point operations of the matrix products in a traced program (jaxpr)."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

Kernel = tuple[str, tuple[tuple[int, ...], ...]]
"""A Pallas kernel by its name and the shapes of its results."""


ATTENTION_PRODUCTS, ATTENTION_BACKWARD_PRODUCTS = 2, 5
"""Matrix products of a fused attention: logits and values; both gradients of each and the logits
again."""

_FUSED_ATTENTION = {
    "dot_product_attention_fwd_wrapper": ATTENTION_PRODUCTS,
    "dot_product_attention_bwd_wrapper": ATTENTION_BACKWARD_PRODUCTS,
}


def product_flops(jaxpr: Any) -> int:
    """Multiplications and additions of all matrix products of a jaxpr.

    Loops count as often as they run, and a Pallas kernel's program once for each point of its grid.
    Of a condition's branches only the most expensive one counts. Products that no output needs are
    counted, too.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _dot_flops(equation)
            continue
        if equation.primitive.name in _FUSED_ATTENTION:
            total += _attention_flops(equation)
            continue
        inner = [product_flops(sub) for sub in _inner(equation)]
        if equation.primitive.name == "cond":
            total += max(inner, default=0)
        elif equation.primitive.name == "pallas_call":
            total += sum(inner) * math.prod(equation.params["grid_mapping"].grid)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def kernel_flops(jaxpr: Any) -> dict[Kernel, int]:
    """FLOPs of one call of each Pallas kernel in a jaxpr: XLA cannot look inside."""
    found: dict[Kernel, int] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            shapes = tuple(tuple(variable.aval.shape) for variable in equation.outvars)
            grid = math.prod(equation.params["grid_mapping"].grid)
            flops = sum(product_flops(sub) for sub in _inner(equation))
            found[equation.params["name"], shapes] = flops * grid
        else:
            for sub in _inner(equation):
                found |= kernel_flops(sub)
    return found


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        yield from _jaxprs(value)


def _jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def _dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    out = equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _attention_flops(equation: Any) -> int:
    q, k = (variable.aval.shape for variable in equation.invars[:2])  # [B, N, K, D/K]
    return 2 * _FUSED_ATTENTION[equation.primitive.name] * math.prod(q) * k[1]

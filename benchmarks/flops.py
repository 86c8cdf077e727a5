"""Floating point operations of a program's matrix products, with every turn of its loops."""

from collections.abc import Callable
from typing import Any

import jax

from ladd_jax.planning.jaxpr_flops import product_flops


def matrix_flops(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of all matrix products of `function(*args)`.

    XLA's own count takes the body of a loop only once. Of a conditional, the most expensive branch
    counts. Products that no output needs are counted too.
    """
    return product_flops(jax.make_jaxpr(function)(*args).jaxpr)

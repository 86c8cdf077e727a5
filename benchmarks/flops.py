"""Floating point operations of the matrix products in a program, loops counted as they turn."""

from collections.abc import Callable
from typing import Any

import jax

from ladd_jax.planning.jaxpr_flops import product_flops


def matrix_flops(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of all matrix products of `function(*args)`.

    XLA's own count takes the body of a loop once. Of a condition's branches the most
    expensive one counts. What no output needs is not removed.
    """
    return product_flops(jax.make_jaxpr(function)(*args).jaxpr)

"""Constant weights in int8 with a float32 scale for each output channel, by Qwix.

A kernel `[I, *O]` is stored as int8 of the same shape, with a scale `[*O]`, the largest magnitude
over its inputs divided by 127.5. It is converted back where it is used, so that activations and
their gradients are those of a floating-point network with slightly different weights.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, Params
from ladd_jax.parallel.mesh import parameter_shardings


def check_installed() -> None:
    """Raises UserError if Qwix is not installed."""
    if importlib.util.find_spec("qwix") is None:
        raise UserError(
            "int8 weights need qwix, which is not installed: run pip install ladd_jax[int8]"
        )


def dequantize(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """The float32 kernel `[I, *O]` of an int8 kernel `[I, *O]` and its scale `[*O]`."""
    import qwix

    return qwix.dequantize(qwix.QArray(kernel, scale[None]))


def quantize(kernel: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """An int8 kernel and its float32 scale, which has all dimensions except that of the inputs.

    Args:
      kernel: kernel of any float dtype.
      axis: axis of its inputs.
    """
    import qwix

    channels = [other for other in range(kernel.ndim) if other != axis]
    array = qwix.quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=channels)
    return array.qvalue, jnp.squeeze(array.scale, axis)


def quantize_params(model: Model, params: Params, mesh: Mesh) -> Params:
    """Parameters with int8 kernels, from the parameters of the network in floating point.

    Args:
      model: the network with int8 kernels.
      params: parameters of the same network without, in any float dtype.
      mesh: mesh of the result.
    """
    shardings = parameter_shardings(mesh, model.shapes, model.axes)

    def convert(shapes: Any, axes: Any, shardings: Any, params: Any) -> Any:
        if not isinstance(shapes, dict):
            return params.astype(shapes.dtype)
        made: dict[str, Any] = {}
        if "kernel" in shapes and shapes["kernel"].dtype == jnp.int8:
            # A stack of layers has one more dimension, before that of the inputs.
            inputs = int(axes["kernel"][0] == "layers")
            laid = shardings["kernel"], shardings["scale"]
            # Compiled, so that only a kernel and its int8 form are in memory.
            program = jax.jit(quantize, static_argnums=1, out_shardings=laid)
            made["kernel"], made["scale"] = program(params["kernel"], inputs)
        return made | {
            name: convert(inner, axes[name], shardings[name], params[name])
            for name, inner in shapes.items()
            if name not in made
        }

    return convert(model.shapes, model.axes, shardings, params)

"""Networks that share a file, told apart by the prefixes of their tensors' names."""

from collections.abc import Mapping

from ladd_jax.weights.files import StoredTensor

Tensors = Mapping[str, StoredTensor]


def prefixes(tensors: Tensors, mark: str) -> list[str]:
    """The prefixes under which a file holds a given kind of network, the shortest first.

    Args:
      tensors: a file's tensors.
      mark: the name of a tensor that only this kind has, such as `x_embedder.proj.weight`.

    Returns:
      one prefix for each such network, which may be empty, or such as `model.diffusion_model.`.
    """
    found = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return sorted(
        (prefix for prefix in found if prefix[-1:] in ("", ".")), key=lambda p: (len(p), p)
    )


def below(prefix: str, tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors whose names have a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }

"""Networks that share a file: whose tensors are whose, by what stands before their names."""

from collections.abc import Mapping

from ladd_jax.weights.files import StoredTensor

Tensors = Mapping[str, StoredTensor]


def prefixes(tensors: Tensors, mark: str) -> list[str]:
    """What stands before a name that only one kind of network has; the shortest first.

    Args:
      tensors: a file's tensors.
      mark: the name, such as `x_embedder.proj.weight`.

    Returns:
      Empty, or such as `model.diffusion_model.`; several where there are several networks.
    """
    found = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return sorted(
        (prefix for prefix in found if prefix[-1:] in ("", ".")), key=lambda p: (len(p), p)
    )


def below(prefix: str, tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }

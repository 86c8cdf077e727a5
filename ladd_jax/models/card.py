"""The parts of model cards that all families share; a family's folder has the rest."""

from collections.abc import Mapping
from pathlib import Path

from ladd_jax import __version__
from ladd_jax.methods import METHODS
from ladd_jax.models.families import Export
from ladd_jax.paths import expand
from ladd_jax.weights.source import names_repository

LIMITS = """## Limits

Known problems of LADD students ([arXiv 2403.12015](https://arxiv.org/abs/2403.12015)), which other
few-step students may share: objects that touch may merge, spatial relations may come out wrong, and
things that a prompt negates may be shown. Students use neither guidance nor a negative prompt, and
only work with the sigmas above, not with others such as those of a default schedule. Biases and
limits of the base model remain.
"""
"""The end of a card."""


def named(weights: str) -> str:
    """Weights as text in a card: a link if they are on the hub, else the folder's name."""
    if _is_on_hub(weights):
        return f"[{weights}](https://huggingface.co/{weights})"
    return f"`{Path(weights).name}`"


def address(weights: str) -> str:
    """Weights as code in a card: owner/name if they are on the hub, else the folder's name."""
    return weights if _is_on_hub(weights) else Path(weights).name


def header(export: Export, *tags: str) -> str:
    """The metadata that the Hugging Face hub reads, and the title.

    Args:
      export: the export.
      *tags: the family's tags.
    """
    base = [f"base_model: {export.base}"] if _is_on_hub(export.base) else []
    if export.adapters is not None:
        tags += ("lora",)
        base += ["base_model_relation: adapter"] * bool(base)
    task = "image-to-image" if export.joined else "text-to-image"
    lines = [
        "---",
        "library_name: diffusers",
        f"pipeline_tag: {task}",
        "license: other",
        "license_name: that-of-the-base-model",
        *base,
        "tags:",
        f"- {task}",
        *(f"- {tag}" for tag in tags),
        "- distillation",
        f"- {export.objective}",
        "---\n",
        f"# {export.name}\n",
    ]
    return "\n".join(lines)


def summary(export: Export) -> str:
    """What the model is, in two sentences."""
    counts = sorted(export.sigmas)
    shown = " or ".join(map(str, counts))
    return (
        f"{METHODS[export.objective].title} of {named(export.base)}: pictures in "
        f"{shown} unguided step{'s' * (counts != [1])}. The licence is that of the base model. "
        f"Made with ladd_jax {__version__}.\n"
    )


def settings(rows: Mapping[str, object]) -> str:
    """A table of how the model was made."""
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"## How it was made\n\n| | |\n|---|---|\n{table}\n"


def _is_on_hub(weights: str) -> bool:
    return names_repository(weights) and not expand(weights).exists()

"""What the model cards of all families share; how to call a model is in the family's folder."""

from collections.abc import Mapping
from pathlib import Path

from ladd_jax import __version__
from ladd_jax.methods import METHODS
from ladd_jax.models.families import Export
from ladd_jax.paths import expand
from ladd_jax.weights.source import names_repository

LIMITS = """## Limits

Known of students of LADD ([arXiv 2403.12015](https://arxiv.org/abs/2403.12015)), and to be looked
for in others of few steps: objects that touch may merge, spatial relations may come out wrong, and
what a prompt negates may be shown. They take neither guidance nor a negative prompt, and the sigmas
above alone; others, such as those of a default schedule, are not theirs. Biases and limits of the
base model are still there.
"""
"""The card's end."""


def named(weights: str) -> str:
    """Weights as a card names them: a link for those of the hub, else the folder's name."""
    if _is_on_hub(weights):
        return f"[{weights}](https://huggingface.co/{weights})"
    return f"`{Path(weights).name}`"


def address(weights: str) -> str:
    """Weights as code names them: owner/name of the hub, else the folder's name."""
    return weights if _is_on_hub(weights) else Path(weights).name


def header(export: Export, *tags: str) -> str:
    """What the Hugging Face hub reads, and the title.

    Args:
      export: what is exported.
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

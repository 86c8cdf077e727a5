"""Names that data of edits give to their columns: a picture, an instruction, the edited picture.

The names are those of InstructPix2Pix (Brooks et al. 2023), in its full and its small release, and
of MagicBrush (Zhang et al. 2023).
"""

from collections.abc import Container, Sequence

SOURCES = ("original_image", "input_image", "source_img", "source_image")
"""Columns of the pictures that are edited."""

INSTRUCTIONS = ("edit_prompt", "instruction")
"""Columns of the instructions."""

EDITED = ("edited_image", "target_img", "target_image")
"""Columns of the edited pictures."""

SOURCE_COLUMN = "in data.source_column the column of the pictures that were edited"
"""What a user is asked to name where `prompts.choose_column` finds none, or several."""


def first(names: Container[str], usual: Sequence[str]) -> str:
    """The first of the usual names that is among the names; empty where none is."""
    return next((name for name in usual if name in names), "")

"""Names that data of edits give to their columns: a picture, an instruction, the edited picture.

Those of InstructPix2Pix (Brooks et al. 2023), in its full and its small release, and of MagicBrush
(Zhang et al. 2023).
"""

from collections.abc import Container, Sequence

from ladd_jax.errors import UserError

SOURCES = ("original_image", "input_image", "source_img", "source_image")
"""Of the pictures that are edited."""

INSTRUCTIONS = ("edit_prompt", "instruction")
"""Of what is to be done."""

EDITED = ("edited_image", "target_img", "target_image")
"""Of what comes of it."""


def first(names: Container[str], usual: Sequence[str]) -> str:
    """The first of the usual names that there is; empty where there is none."""
    return next((name for name in usual if name in names), "")


def choose(names: Sequence[str], asked: str, usual: Sequence[str], field: str, where: str) -> str:
    """A column that there is: the one asked for, or the only one of the usual ones.

    Args:
      names: columns that there are.
      asked: the one asked for, or empty.
      usual: the usual ones.
      field: the field of a config that names it.
      where: the place, with which the message of an error begins.

    Raises:
      UserError: it is not there, or none or several of the usual ones are.
    """
    found = [name for name in ([asked] if asked else usual) if name in names]
    if len(found) != 1:
        has = " and ".join(found) or f"no column {asked or ' or '.join(usual)}"
        raise UserError(f"{where} has {has}: name one by {field}, of {', '.join(names) or 'none'}")
    return found[0]

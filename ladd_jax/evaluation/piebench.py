"""Edits in the layout of PIE-Bench (Ju et al. 2023), whose own scorer reads them.

    mapping_file.json                 what is to be edited, and how: one object for each picture
    annotation_images/IMAGE_PATH      the pictures, beside that file
    OUT/annotation_images/IMAGE_PATH  a method's edits of them

Then, in a checkout of cure-lab/PnPInversion whose `evaluation/evaluate.py` names the second folder
in its table of methods as NAME, `python evaluation/evaluate.py --tgt_methods NAME` measures how
structure and background stay and whether the edit fits its prompt. Pictures have 512 x 512 pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ladd_jax.data.prompts import check_prompt
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.whole_files import read_json

_PICTURES = "annotation_images"

NEEDED = ("image_path", "editing_instruction")
"""Fields of an object that an edit is made from; the scorer reads others."""


class Task(NamedTuple):
    """A picture of the benchmark, and its edit.

    Attributes:
      instruction: what is to be done.
      image: the picture's file.
      place: where the scorer looks for the edit, below a method's folder.
    """

    instruction: str
    image: Path
    place: Path


def read_piebench(path: Path) -> list[Task]:
    """What PIE-Bench's `mapping_file.json` asks for, in its order.

    Raises:
      NotFoundError: there is no such file, or a picture is not beside it.
      UserError: it is damaged or empty, or an object lacks a field, leads out of the folder or has
        the picture of another.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}: give PIE-Bench's mapping_file.json")
    found = read_json(path, "give PIE-Bench's mapping_file.json")
    if not found:
        raise UserError(f"{path} names no pictures: give PIE-Bench's mapping_file.json")
    tasks: dict[Path, Task] = {}
    for key, entry in found.items():
        task = _task(path, key, entry)
        if tasks.setdefault(task.place, task) is not task:
            # The scorer looks for one edit there.
            raise UserError(
                f"{path}, {key} names {entry['image_path']!r}, which is named before: leave one out"
            )
    return list(tasks.values())


def make_places(out: Path, tasks: Sequence[Task]) -> Callable[[int, int], Path]:
    """Makes the folders of edits, and says where each is below `out`, by its task's number.

    Files have the names of the benchmark's, whatever ends these have; what is in them is PNG, which
    the scorer sees from their content.

    Raises:
      UserError: a folder cannot be made.
    """
    try:
        for folder in {task.place.parent for task in tasks}:
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folders of PIE-Bench cannot be made in {out} ({error.strerror}): name another "
            f"--out"
        ) from error
    return lambda prompt, number: tasks[prompt].place


def _task(path: Path, key: str, entry: object) -> Task:
    where = f"{path}, {key}"
    for name in NEEDED:
        if not isinstance(entry, dict) or not isinstance(entry.get(name), str):
            raise UserError(f"{where} has no field {name!r}: give PIE-Bench's mapping_file.json")
    assert isinstance(entry, dict)
    place = Path(_PICTURES, entry["image_path"])
    if ".." in place.parts or Path(entry["image_path"]).is_absolute():
        raise UserError(
            f"{where} names {entry['image_path']!r} outside of its folder: name it inside"
        )
    image = path.parent / place
    if not image.is_file():
        raise NotFoundError(f"{where} names {image}, which is not there: put PIE-Bench's there")
    return Task(check_prompt(entry["editing_instruction"], where), image, place)

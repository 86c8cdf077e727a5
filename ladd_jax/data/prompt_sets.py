"""Prompts of published sets, from the files in which their authors give them."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ladd_jax.data.prompts import (
    SUFFIXES,
    check_prompt,
    read_prompts,
    read_text,
    stream_prompts,
)
from ladd_jax.errors import UserError
from ladd_jax.paths import expand, is_there, matches

_EVERY = 4
_COUNT = 128


def read_prompt_set(path: str | Path, column: str = "") -> list[str]:
    """All of `stream_prompt_set`, with the same arguments and errors."""
    return list(stream_prompt_set(path, column))


def stream_prompt_set(path: str | Path, column: str = "") -> Iterator[str]:
    """The prompts of a file, which may be one of a published set.

    Files that `read_prompts` reads are never held whole.

    Args:
      path: what `read_prompts` reads; or `SET:FILE`, where SET is one of `SETS`, such as
        `parti128:PartiPrompts.tsv`.
      column: as of `read_prompts`; a set knows its own.

    Raises:
      NotFoundError: there is no such file.
      UserError: the file is not what it should be.
    """
    name, file = _set(path)
    if not name:
        yield from stream_prompts(path, column)
        return
    if column:
        raise UserError(
            f"{path} is of a known set, and column {column!r} was named: leave one of both out"
        )
    prompts = SETS[name](Path(file))
    if not prompts:
        raise UserError(f"{file} holds no prompts of {name}: get it again")
    yield from prompts


def prompt_files(path: str | Path) -> list[Path]:
    """The files that `stream_prompt_set` reads.

    Raises:
      NotFoundError: there are none.
    """
    name, file = _set(path)
    return [expand(file)] if name else matches(path)


def names_prompts(path: str | Path) -> bool:
    """Whether a path is of prompts, as `read_prompt_set` reads them, and not of pictures."""
    if is_there(path) and expand(path).is_dir():
        return False
    # The last of a list tells what all are.
    return bool(_set(path)[0]) or Path(path).suffix.lower() in SUFFIXES


def _set(path: str | Path) -> tuple[str, str]:
    """The set's name and its file; both are empty where the path is of no set."""
    name, colon, file = str(path).partition(":")
    return (name, file) if colon and name in SETS and not is_there(path) else ("", "")


def read_parti(path: Path) -> list[str]:
    """All of PartiPrompts (Yu et al. 2022), 1,632 in its `PartiPrompts.tsv`."""
    return [prompt for prompt, _ in _parti(path)]


def read_parti_choice(path: Path) -> list[str]:
    """128 of PartiPrompts: none that its authors call Basic, of the others every fourth.

    That is the choice of the LADD paper for its studies of preference (Sauer et al. 2024). On the
    published file this gives 340, not 128, so the first 128 of these are taken.
    """
    chosen = [prompt for prompt, challenge in _parti(path) if challenge != "Basic"]
    return chosen[::_EVERY][:_COUNT]


def _parti(path: Path) -> list[tuple[str, str]]:
    """Prompts and their challenges."""
    # Quotes are characters like others here: one prompt begins with some words in quotes.
    text = io.StringIO(read_text(path), "")
    try:
        rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        raise UserError(f"{path} is no table of PartiPrompts ({error}): get it again") from error
    names = rows[0] if rows else []
    if not {"Prompt", "Challenge"} <= set(names):
        raise UserError(
            f"{path} has the columns {', '.join(names) or 'none'}, and PartiPrompts has Prompt and "
            "Challenge: give its PartiPrompts.tsv"
        )
    prompt, challenge = names.index("Prompt"), names.index("Challenge")
    found = []
    for number, row in enumerate(rows[1:], 2):
        where = f"{path}, line {number}"
        if len(row) != len(names):
            raise UserError(f"{where} has {len(row)} fields and not {len(names)}: get it again")
        found.append((check_prompt(row[prompt], where), row[challenge]))
    return found


def read_drawbench(path: Path) -> list[str]:
    """DrawBench (Saharia et al. 2022): 200 prompts, as csv with the column `Prompts`."""
    return read_prompts(path, "Prompts")


def read_coco(path: Path) -> list[str]:
    """COCO's captions (Lin et al. 2014), such as `captions_val2014.json`.

    Of each image the caption with the lowest number, images in the order of theirs.
    """
    text = read_text(path)
    try:
        content: Any = json.loads(text)
        found: dict[int, tuple[int, str]] = {}
        for entry in content["annotations"]:
            image, number = int(entry["image_id"]), int(entry["id"])
            if image not in found or number < found[image][0]:
                found[image] = number, entry["caption"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} holds no captions of COCO ({reason}): give its captions_*.json"
        ) from error
    return [check_prompt(found[image][1], f"{path}, image {image}") for image in sorted(found)]


SETS: dict[str, Callable[[Path], list[str]]] = {
    "parti": read_parti,
    "parti128": read_parti_choice,
    "drawbench": read_drawbench,
    "coco": read_coco,
}
"""Readers of the sets, by the name that stands before a file."""

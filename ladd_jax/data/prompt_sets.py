"""Prompts of published sets, from the files that their authors publish."""

import csv
import io
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
from ladd_jax.whole_files import parse_json

_EVERY = 4
_COUNT = 128


def read_prompt_set(path: str | Path, column: str = "") -> list[str]:
    """All of `stream_prompt_set`, with the same arguments and errors."""
    return list(stream_prompt_set(path, column))


def stream_prompt_set(path: str | Path, column: str = "") -> Iterator[str]:
    """The prompts of a file, which may be one of a published set.

    Files that `read_prompts` reads are never held whole.

    Args:
      path: a path that `read_prompts` reads; or `SET:FILE`, where SET is one of `SETS`, such as
        `parti128:PartiPrompts.tsv`.
      column: see `read_prompts`; empty for a set, which has a fixed column.

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
            f"{path} is a known set, which has a fixed column, and column {column!r} was named: "
            f"leave one of the two out"
        )
    prompts = SETS[name](Path(file))
    if not prompts:
        raise UserError(f"{file} holds no prompts of {name}: get it again")
    yield from prompts


def prompt_files(path: str | Path) -> list[Path]:
    """The files that `stream_prompt_set` reads.

    Raises:
      NotFoundError: there are no such files.
    """
    name, file = _set(path)
    return [expand(file)] if name else matches(path)


def names_prompts(path: str | Path) -> bool:
    """Whether a path names prompts that `read_prompt_set` reads, and not pictures."""
    if is_there(path) and expand(path).is_dir():
        return False
    # The last file of a list decides for all of them.
    return bool(_set(path)[0]) or Path(path).suffix.lower() in SUFFIXES


def _set(path: str | Path) -> tuple[str, str]:
    """The name of a set and its file; both are empty where the path names no set."""
    name, colon, file = str(path).partition(":")
    return (name, file) if colon and name in SETS and not is_there(path) else ("", "")


def read_parti(path: Path) -> list[str]:
    """All of PartiPrompts (Yu et al. 2022), 1,632 in its `PartiPrompts.tsv`."""
    return [prompt for prompt, _ in _parti(path)]


def read_parti_choice(path: Path) -> list[str]:
    """128 of PartiPrompts: every fourth of the prompts that its authors do not call Basic.

    This is how the LADD paper chooses prompts for its preference studies (Sauer et al. 2024). On
    the published file the rule gives 340 prompts, not 128, so the first 128 of these are taken.
    """
    chosen = [prompt for prompt, challenge in _parti(path) if challenge != "Basic"]
    return chosen[::_EVERY][:_COUNT]


def _parti(path: Path) -> list[tuple[str, str]]:
    """Prompts and their challenges."""
    # Quotes are ordinary characters here: one prompt begins with some words in quotes.
    text = io.StringIO(read_text(path), "")
    try:
        rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        raise UserError(f"{path} is not PartiPrompts' table ({error}): get it again") from error
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

    It takes the caption with the lowest number of each image, in the order of the images' numbers.
    """
    text = read_text(path)
    try:
        content: Any = parse_json(text)
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
"""Readers of the sets, by the name to write before the file."""

"""Pictures in the layout of GenEval (Ghosh et al. 2023), whose own scorer reads them.

    NNNNN/metadata.jsonl     what should be seen: one record of evaluation_metadata.jsonl
    NNNNN/samples/NNNN.png   pictures of its prompt

Then `python evaluation/evaluate_images.py FOLDER --outfile results.jsonl` in a checkout of
djghosh13/geneval detects objects, counts, colours and places.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladd_jax.data.prompts import check_prompt, objects
from ladd_jax.errors import UserError

NEEDED = ("tag", "prompt")
"""Fields of a record without which the scorer fails."""


def read_geneval(path: Path) -> list[dict[str, Any]]:
    """The records of GenEval's `evaluation_metadata.jsonl`, one for each prompt.

    Raises:
      NotFoundError: there is no such file.
      UserError: it is empty, or a record is damaged or has a field missing.
    """
    records = []
    for where, record in objects(path):
        absent = [name for name in NEEDED if name not in record]
        if absent:
            raise UserError(
                f"{where} has no field {absent[0]!r}: give GenEval's evaluation_metadata.jsonl"
            )
        check_prompt(record["prompt"], where)
        records.append(record)
    if not records:
        raise UserError(f"{path} holds no prompts: give GenEval's evaluation_metadata.jsonl")
    return records


def write_records(out: Path, records: Sequence[dict[str, Any]]) -> None:
    """Makes a folder for each prompt, with its record.

    Raises:
      UserError: a folder or a file cannot be written.
    """
    try:
        for number, record in enumerate(records):
            folder = out / f"{number:05}"
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            text = json.dumps(record, ensure_ascii=False)
            (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the folders of GenEval cannot be made in {out} ({error.strerror}): name another --out"
        ) from error


def picture_file(prompt: int, number: int) -> Path:
    """The path below GenEval's folder of picture `number` of a prompt, both counted from 0."""
    return Path(f"{prompt:05}", "samples", f"{number:04}.png")

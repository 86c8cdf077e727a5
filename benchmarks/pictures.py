"""`python -m benchmarks.pictures --output=DIR [--fetch=DIR]`: a folder of emoji with captions.

It holds real colour pictures with names for `configs/pictures.py`: emoji of several makers, from
npm's `emoji-datasource-*`. Each name of each maker becomes two pictures, which differ in size,
place, background and, by a hash of the file's name, shape. One is captioned with name and maker
("red apple, twitter"), the other only with a word for its category ("food"), which many pictures
share.

For half of the names, one maker is held out: training sees such a name from other makers, and the
maker with other names. The column `held_out` of the folder's metadata says which pictures these
are, and the source of pictures follows it.

The pictures belong to others: `LICENSES.md` in the folder names the owners, and which pictures may
be passed on.
"""

import colorsys
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image
from tqdm import tqdm

from benchmarks.emoji import MAKERS, Emoji, fetch, licences, read_emoji
from ladd_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_FETCH = flags.DEFINE_string(
    "fetch", "", "Folder of the npm packages, installed there if missing. Default: OUTPUT_packages."
)

SHAPES = {(64, 64): 0.5, (48, 80): 0.25, (80, 48): 0.25}
"""Rows and columns of pictures, and the share of pictures that have them."""

LONGEST_NAME = 36
"""Bytes of the longest name that is kept; the few longer ones are whole sentences."""

_HELD_OUT = 0.5
_VIEWS = 2
_SMALLEST = 36


def caption(emoji: Emoji, maker: str, view: int) -> str:
    """The caption of a picture: name and maker in even views, the category in odd ones."""
    return emoji.kind if view % 2 else f"{emoji.name}, {maker}"


def file_name(emoji: Emoji, maker: str, view: int) -> str:
    """A picture's file name. It begins with a hash, so that the first files are a fair sample."""
    rest = f"{emoji.code}_{maker}_{view}"
    return f"{_seed(rest) >> 224:08x}_{rest}.png"


def held_out_combinations(
    makers: Mapping[str, Sequence[str]], share: float = _HELD_OUT
) -> set[tuple[str, str]]:
    """The combinations of an emoji's code and a maker that are held out.

    An emoji has at most one, and only if two other makers draw it, so that training sees each name.
    The choice depends only on the code and its makers, so that further emoji do not change it.

    Args:
      makers: names of the makers that draw each emoji, by its code.
      share: share of the emoji that have one.
    """
    return {
        (code, min(names, key=lambda maker: _seed(f"{code} by {maker}")))
        for code, names in makers.items()
        if len(names) > 2 and _seed(f"hold out {code}") < share * 2**256
    }


def shape(name: str) -> tuple[int, int]:
    """Rows and columns of the picture in a file of this name."""
    shapes = list(SHAPES)
    return shapes[np.random.default_rng(_seed(name)).choice(len(shapes), p=list(SHAPES.values()))]


def compose(emoji: Image.Image, name: str) -> Image.Image:
    """An emoji at a random place, in a random size, on white or on a pale colour.

    Args:
      emoji: RGBA, square.
      name: name of the picture's file, the seed of all random draws.

    Returns:
      An RGB picture of the file's `shape`.
    """
    height, width = shape(name)
    rng = np.random.default_rng([_seed(name), 1])
    colour = (255, 255, 255)
    if rng.random() < 2 / 3:
        hue, saturation, value = rng.random(), rng.uniform(0.05, 0.3), rng.uniform(0.88, 1)
        red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
        colour = (red, green, blue)
    side = int(rng.integers(_SMALLEST, min(height, width) + 1))
    place = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    canvas = Image.new("RGBA", (width, height), colour)
    canvas.alpha_composite(emoji.resize((side, side), Image.Resampling.LANCZOS), place)
    return canvas.convert("RGB")


def _seed(text: str) -> int:
    """256 bits that stand for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


def _distinct(
    emoji: Sequence[Emoji], left_out: Counter[str]
) -> Iterator[tuple[Emoji, dict[str, Image.Image]]]:
    """Each emoji with its pictures by maker, without pictures that the maker has used before.

    Under a second name such a picture could show in training what is held out.
    """
    seen: dict[str, set[bytes]] = defaultdict(set)
    for each in emoji:
        pictures = {}
        for maker, file in each.files.items():
            with Image.open(file) as image:
                picture = image.convert("RGBA")
            digest = hashlib.sha256(picture.tobytes()).digest()
            if digest in seen[maker]:
                left_out["same picture under another name"] += 1
                continue
            seen[maker].add(digest)
            pictures[maker] = picture
        if pictures:
            yield each, pictures


def write(root: Path, output: Path) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Writes the folder, its metadata last.

    Args:
      root: the folder of the npm packages.
      output: the folder to write, new or empty.

    Returns:
      The rows of `metadata.jsonl`, and how many of the packages' pictures are left out, by reason.

    Raises:
      UserError: the folder has files.
    """
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} has files: remove them, or name another folder")
    emoji, left_out = read_emoji(root, LONGEST_NAME)
    kept = list(_distinct(emoji, left_out))
    apart = held_out_combinations({each.code: list(pictures) for each, pictures in kept})
    (output / "images").mkdir(parents=True)
    (output / "LICENSES.md").write_text(licences(root))
    rows = []
    for each, pictures in tqdm(kept, unit="emoji"):
        for maker, picture in pictures.items():
            for view in range(_VIEWS):
                name = file_name(each, maker, view)
                compose(picture, name).save(output / "images" / name)
                rows.append(
                    {
                        "file_name": f"images/{name}",
                        "text": caption(each, maker, view),
                        "held_out": (each.code, maker) in apart,
                        "name": each.name,
                        "maker": maker,
                        "kind": each.kind,
                    }
                )
    lines = (json.dumps(row) + "\n" for row in rows)
    (output / "metadata.jsonl").write_text("".join(lines))
    return rows, left_out


def tables(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, int]) -> str:
    """Counts of the folder's training and held-out pictures, by maker, kind and shape."""
    sections = []
    shapes = ["{}x{}".format(*shape(Path(row["file_name"]).name)) for row in rows]
    described = [{**row, "shape": each} for row, each in zip(rows, shapes, strict=True)]
    for column in ("maker", "kind", "shape"):
        counts = Counter((row[column], row["held_out"]) for row in described)
        lines = [f"| {column} | pictures | held out |", "|---|---|---|"]
        values = sorted({value for value, _ in counts}, key=lambda value: -counts[value, False])
        lines += [f"| {v} | {counts[v, False]} | {counts[v, True]} |" for v in values]
        sections.append("\n".join(lines))
    held = sum(row["held_out"] for row in rows)
    names, captions = (len({row[column] for row in rows}) for column in ("name", "text"))
    sections.append(
        f"{len(rows) - held} pictures and {held} held out, {names} names, {captions} captions"
    )
    sections.append("\n".join(f"left out: {n}, {reason}" for reason, n in left_out.items()))
    return "\n\n".join(sections)


def main(_: list[str]) -> None:
    """Fetches the packages, writes the folder and prints what it holds."""
    output = Path(_OUTPUT.value)
    root = Path(_FETCH.value) if _FETCH.value else output.with_name(f"{output.name}_packages")
    fetch(root)
    print(tables(*write(root, output)))
    print(f"\nmakers: {', '.join(maker.name for maker in MAKERS)}; licences: {output}/LICENSES.md")


if __name__ == "__main__":
    app.run(main)

"""Emoji of several makers: their pictures, names and kinds, and who owns them.

Each of the npm packages `emoji-datasource-*` holds a maker's pictures of 64 x 64 and an
`emoji.json` with what Unicode says about every emoji. Debian's font Noto Color Emoji would add no
maker: it has the same artwork as Google's package.
"""

import dataclasses
import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladd_jax.errors import NotFoundError, UserError


@dataclasses.dataclass(frozen=True)
class Maker:
    """Who drew a set of emoji.

    Attributes:
      name: the maker's name in captions and in the package's name.
      version: the last version of the package `emoji-datasource-NAME` with the maker's pictures.
      rights: who owns the pictures, and what the owner allows.
    """

    name: str
    version: str
    rights: str

    @property
    def package(self) -> str:
        """The npm package with the maker's pictures."""
        return f"emoji-datasource-{self.name}"


MAKERS = (
    Maker(
        "google",
        "16.0.0",
        "Noto Emoji, copyright Google LLC. The pictures are under the Apache License 2.0, the font "
        "made of them under the SIL Open Font License 1.1.",
    ),
    Maker(
        "twitter",
        "16.0.0",
        "Twemoji, copyright Twitter, Inc. and other contributors. Creative Commons Attribution 4.0 "
        "(CC BY 4.0).",
    ),
    Maker(
        "apple",
        "16.0.0",
        "Copyright Apple Inc., all rights reserved. Not licensed for commercial use or for "
        "redistribution.",
    ),
    Maker(
        "facebook",
        "16.0.0",
        "Copyright Meta Platforms, Inc. (Facebook). No licence is stated: not for redistribution.",
    ),
    Maker(
        "emojione",
        "4.0.4",
        "EmojiOne 3.1.2, copyright Ranks.com Inc. (today JoyPixels), under its own licence: not "
        "for redistribution without asking.",
    ),
    Maker(
        "messenger",
        "4.1.0",
        "Copyright Meta Platforms, Inc. (Facebook). No licence is stated: not for redistribution.",
    ),
)
"""The makers. The `emoji.json` of the first one's package gives the names of all emoji."""

KINDS = {
    "Smileys & Emotion": {
        "heart": "a heart", "emotion": "a feeling", "monkey-face": "an animal", "": "a face",
    },
    "People & Body": {
        "hand": "a hand", "body-parts": "a part of the body", "family": "a family",
        "": "a person",
    },
    "Animals & Nature": {"plant": "a plant", "": "an animal"},
    "Food & Drink": {"drink": "a drink", "": "food"},
    "Travel & Places": {
        "place": "a place", "hotel": "a place", "time": "a clock", "sky": "the sky",
        "": "a vehicle",
    },
    "Activities": {"sport": "a sport", "game": "a game", "arts": "a game", "": "a celebration"},
    "Objects": {
        "clothing": "clothes", "tool": "a tool", "music": "music", "sound": "music", "": "a thing",
    },
    "Symbols": {"arrow": "an arrow", "geometric": "a shape", "": "a sign"},
    "Flags": {"": "a flag"},
}  # fmt: skip
"""Words for each category of Unicode, by the beginning of the subcategory's name."""

_LEFT_OUT = {"country-flag": "flag of a country", "subdivision-flag": "flag of a country"}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """An emoji, whoever draws it.

    Attributes:
      code: its code points in hexadecimal, without variation selectors: `1f34e`.
      name: Unicode's name in small letters.
      kind: a word for its category, which it shares with many others.
      files: path of its picture, by the name of each maker that draws it.
    """

    code: str
    name: str
    kind: str
    files: Mapping[str, Path]


def fetch(root: Path) -> None:
    """Installs the packages into `root/node_modules` by npm, unless all are there.

    Raises:
      UserError: npm is missing or fails.
    """
    if all(_folder(root, maker).is_dir() for maker in MAKERS):
        return
    root.mkdir(parents=True, exist_ok=True)
    named = [f"{maker.package}@{maker.version}" for maker in MAKERS]
    command = ["npm", "install", "--prefix", str(root), "--ignore-scripts", "--no-audit", *named]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"npm cannot install the packages ({error}): install npm, or give a folder that holds "
            f"node_modules with {', '.join(named)}"
        ) from error


def read_emoji(root: Path, longest: int) -> tuple[list[Emoji], Counter[str]]:
    """The emoji of all makers, in Unicode's order, and how many pictures are left out, by reason.

    Skin tones are left out, since five more pictures of each hand would outnumber all others and
    differ only in colour. So are flags of countries, which all makers draw alike: a held-out flag
    would not be a new picture.

    Args:
      root: the folder that `fetch` installs into.
      longest: most bytes that a name may have.

    Raises:
      NotFoundError: a package is missing.
    """
    named = _entries(root, MAKERS[0])
    drawn = {maker.name: _files(root, maker) for maker in MAKERS}
    left_out = Counter({"skin tone": sum(_toned(root, maker) for maker in MAKERS)})
    emoji: dict[str, Emoji] = {}
    for entry in sorted(named, key=lambda entry: entry["sort_order"]):
        code, name = code_of(entry), entry["name"].lower()
        files = {maker: files[code] for maker, files in drawn.items() if code in files}
        reason = _LEFT_OUT.get(entry["subcategory"])
        if entry["category"] == "Component":
            reason = "skin tone"
        elif len(name.encode()) > longest:
            reason = f"name of more than {longest} bytes"
        elif name in emoji:
            reason = "name of another emoji"
        if reason:
            left_out[reason] += len(files)
            continue
        emoji[name] = Emoji(code, name, kind(entry["category"], entry["subcategory"]), files)
    return list(emoji.values()), left_out


def kind(category: str, subcategory: str) -> str:
    """The word for a category, such as `an animal`."""
    words = KINDS[category]
    return next(word for start, word in words.items() if subcategory.startswith(start))


def code_of(entry: Mapping[str, Any]) -> str:
    """Code points without variation selectors, which makers and versions set differently."""
    points = entry["unified"].lower().split("-")
    return "-".join(point for point in points if point != "fe0f")


def licences(root: Path) -> str:
    """A page of Markdown that names the rights in each maker's pictures."""
    lines = [
        "# Licences",
        "",
        "The pictures in this folder are made of other people's emoji. They are here for "
        "experiments on this machine; do not pass the folder on.",
        "",
        "| maker | package | licence of the package | the pictures |",
        "|---|---|---|---|",
    ]
    for maker in MAKERS:
        stated = json.loads((_folder(root, maker) / "package.json").read_text())
        package = f"{stated['name']} {stated['version']}"
        lines.append(f"| {maker.name} | {package} | {stated['license']} | {maker.rights} |")
    lines += ["", "A package's licence covers its data and code, not the pictures in it."]
    return "\n".join(lines) + "\n"


def _folder(root: Path, maker: Maker) -> Path:
    return root / "node_modules" / maker.package


def _entries(root: Path, maker: Maker) -> list[dict[str, Any]]:
    file = _folder(root, maker) / "emoji.json"
    if not file.is_file():
        raise NotFoundError(f"no {file}: let npm install {maker.package}@{maker.version} there")
    entries: list[dict[str, Any]] = json.loads(file.read_text())
    return entries


def _toned(root: Path, maker: Maker) -> int:
    """Number of a maker's pictures that are an emoji in a skin tone."""
    return sum(
        bool(variation.get(f"has_img_{maker.name}"))
        for entry in _entries(root, maker)
        for variation in entry.get("skin_variations", {}).values()
    )


def _files(root: Path, maker: Maker) -> dict[str, Path]:
    """A maker's pictures by code; only in sheets do packages fill gaps with other makers'."""
    pictures = _folder(root, maker) / "img" / maker.name / "64"
    return {
        code_of(entry): pictures / entry["image"]
        for entry in _entries(root, maker)
        if entry.get(f"has_img_{maker.name}") and (pictures / entry["image"]).is_file()
    }

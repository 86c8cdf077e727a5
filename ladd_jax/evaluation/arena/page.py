"""The folder of a page that shows models side by side.

It holds `index.html`, which opens offline, its pictures, `arena.json` with the page's data, and in
`given` the pictures that models were given besides prompts.

A contender is a model in a number of steps, and is what people vote on. A model has one contender
for each stop of the slider over numbers of steps; a teacher may be a contender of several models.
"""

import contextlib
import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ladd_jax.errors import DamagedError, ExistsError, NotFoundError, UserError
from ladd_jax.evaluation.page import head
from ladd_jax.names import counted, listed
from ladd_jax.whole_files import read_json, whole_folder

PICTURES, GIVEN, DATA = "pictures", "given", "arena.json"

_ASSETS = Path(__file__).with_name("assets")

# In this order, since later scripts use earlier ones.
_SCRIPTS = ("data.js", "zoom.js", "look.js", "votes.js", "booth.js", "tabs.js")


class Sample(NamedTuple):
    """The prompt and seed of a picture, and the values of conditions that were given, in words."""

    prompt: str
    seed: int
    conditions: str = ""


class Shown(NamedTuple):
    """A picture on the page: its file in the folder of pictures, and its sides in pixels."""

    file: str
    width: int
    height: int


class Contender(NamedTuple):
    """A model in a number of steps.

    Attributes:
      steps: the number of steps; None if it is unknown, as in a folder of pictures.
      teacher: whether it is the teacher of the compared model, instead of that model itself.
      pictures: one for each sample of the page.
    """

    steps: int | None
    teacher: bool
    pictures: list[Shown]


class Album:
    """The pictures of a page, in files named by digests so that voters cannot tell models apart."""

    def __init__(self, folder: Path):
        """Makes the folder of pictures inside the page's folder."""
        self._folder = folder / PICTURES
        self._folder.mkdir()

    def add(self, pixels: np.ndarray) -> Shown:
        """Stores a picture, uint8 `[H, W, 1, 3 or 4]`, as a PNG; equal pictures share a file.

        A fourth channel is opacity.
        """
        # Folders' pictures are read in colour even if they are grey.
        if pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., :1]
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]
        file = self._folder / f"{digest}.png"
        if not file.exists():
            # Not optimized, since for large pictures that takes longer than sampling them.
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file)
        return Shown(file.name, width, height)


def check_free(folder: Path) -> None:
    """Raises ExistsError if a page's folder is a file, or exists and is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExistsError(f"{folder} exists and is not empty: remove it, or choose another --page")


@contextlib.contextmanager
def new_page(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its final name once the block ends without an error.

    Raises:
      ExistsError: something with its final name exists already.
      UserError: no folder can be made there.
    """
    check_free(folder)
    with whole_folder(folder, "page") as partial:
        yield partial


def write_page(
    folder: Path,
    samples: Sequence[Sample],
    models: dict[str, Sequence[Contender]],
    sources: Sequence[Shown] = (),
) -> dict[str, Any]:
    """Writes the page and its data next to its pictures.

    Args:
      folder: folder in which an `Album` has stored the pictures.
      samples: the samples to show, in order.
      models: the contenders of each model, by its name.
      sources: the picture that each sample is made from, besides its prompt; empty if samples are
        made from prompts alone.

    Returns:
      the data: `id`, a digest of all the rest; `samples`; `sources`; `contenders`, each with
      `title`, `model`, `steps`, `teacher` and `pictures`; `stops` of the slider; and `models`, each
      with the index of its contender at each stop.

    Raises:
      UserError: two contenders would have the same title.
    """
    owners: dict[tuple[Any, ...], list[str]] = {}
    for name, own in models.items():
        for contender in own:
            owners.setdefault(_key(name, contender), []).append(name)
    places = {key: place for place, key in enumerate(owners)}
    contenders: list[dict[str, Any]] = [{} for _ in owners]
    steps = sorted({c.steps for own in models.values() for c in own if c.steps is not None})
    shown = []
    for name, own in models.items():
        for contender in own:
            key = _key(name, contender)
            model = f"teacher of {listed(owners[key])}" if contender.teacher else name
            contenders[places[key]] = {
                "title": titled(model, contender.steps),
                "model": model,
                "steps": contender.steps,
                "teacher": contender.teacher,
                "pictures": contender.pictures,
            }
        at = [_nearest(own, stop) for stop in steps or [0]]
        shown.append({"name": name, "shown": [places[_key(name, each)] for each in at]})
    titles = [contender["title"] for contender in contenders]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(
                f"two contenders would be called {title!r}: give a model another name, as in "
                f"--compare=NAME=PATH"
            )
    data: dict[str, Any] = {
        "samples": [
            {"prompt": prompt, "seed": seed} | ({"conditions": conditions} if conditions else {})
            for prompt, seed, conditions in samples
        ],
        "sources": list(sources),
        "contenders": contenders,
        "stops": [_stop(stop, models) for stop in steps],
        "models": shown,
    }
    text = json.dumps(data, sort_keys=True)
    data = {"id": hashlib.sha256(text.encode()).hexdigest()[:16]} | data
    (folder / DATA).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
    title = f"{listed(list(models))}, side by side"
    (folder / "index.html").write_text(_html(title, data), "utf-8")
    return data


def read_page(folder: Path) -> dict[str, Any]:
    """The data that `write_page` wrote.

    Raises:
      NotFoundError: there is no page.
      DamagedError: its data are damaged.
    """
    file = folder / DATA
    if not file.is_file():
        raise NotFoundError(f"{folder} has no {DATA}: name a folder that --compare wrote")
    data = read_json(file, "write the page again")
    contenders = data.get("contenders")
    if (
        not isinstance(data.get("id"), str)
        or not isinstance(contenders, list)
        or not all(isinstance(c, dict) and isinstance(c.get("title"), str) for c in contenders)
    ):
        raise DamagedError(f"{file} is damaged (it has no id or no contenders): write it again")
    return data


def titled(model: str, steps: int | None) -> str:
    """A contender's name, on the page and in files of votes."""
    return model if steps is None else f"{model}, {counted(steps, 'step')}"


def _html(title: str, data: dict[str, Any]) -> str:
    scripts = "\n".join((_ASSETS / name).read_text("utf-8") for name in _SCRIPTS)
    return "\n".join(
        [
            *head(title),
            f"<style>{(_ASSETS / 'page.css').read_text('utf-8')}</style>",
            (_ASSETS / "body.html").read_text("utf-8").replace("TITLE", html.escape(title)),
            f"<script type=application/json id=arena>{_inside_script(data)}</script>",
            f"<script>\n{scripts}</script>",
            "",
        ]
    )


def _inside_script(data: dict[str, Any]) -> str:
    """JSON escaped so that no prompt or name can end the script or begin an HTML comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _key(name: str, contender: Contender) -> tuple[Any, ...]:
    """A key of a contender, which is the same for teachers with the same pictures."""
    owner = None if contender.teacher else name
    return (owner, contender.steps, contender.teacher, *contender.pictures)


def _nearest(own: Sequence[Contender], stop: int) -> Contender:
    """The contender that a model shows at a stop.

    It has as many steps as the stop, or else the next fewer, or else the model's fewest. Among
    equals the model itself goes before its teacher.
    """
    ordered = sorted(own, key=lambda contender: (contender.steps or 0, not contender.teacher))
    return [*ordered[:1], *(c for c in ordered if (c.steps or 0) <= stop)][-1]


def _stop(steps: int, models: dict[str, Sequence[Contender]]) -> dict[str, Any]:
    found = [c.teacher for own in models.values() for c in own if c.steps == steps]
    teacher = all(found)
    words = counted(steps, "step")
    return {"steps": steps, "title": f"teacher, {words}" if teacher else words, "teacher": teacher}

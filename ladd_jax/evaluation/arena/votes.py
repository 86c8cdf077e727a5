"""Files of votes, which people download from the page of models side by side.

A file is a JSON object: `format` is `ladd_jax votes`, `page` the page's id, `models` its models,
`voter` a random name of the browser, and `votes` a list of `prompt`, `seed`, `conditions` where
values of some were given, `left` and `right`, which name models, `choice` (`left`, `right` or
`tie`) and `time` (ISO 8601 in UTC).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.evaluation.arena.elo import Game
from ladd_jax.evaluation.arena.page import read_page
from ladd_jax.whole_files import read_json

FORMAT = "ladd_jax votes"

_SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}
_TEXTS = ("prompt", "left", "right", "choice", "time")
_REMEDY = "export it again from the page"


class Ballot(NamedTuple):
    """The votes on one page.

    Attributes:
      page: the page's id.
      models: the page's models, in its order.
      games: the votes, with models by their index.
      voters: number of voters.
      repeated: number of votes left out because the same voter has a newer one, or an equally old
        one, on the same pair of pictures.
    """

    page: str
    models: list[str]
    games: list[Game]
    voters: int
    repeated: int


def read_votes(files: Sequence[Path], page: Path | None = None) -> Ballot:
    """The votes of several files together.

    Args:
      files: files that the page exported. Files of one voter may overlap, since only the newest
        vote on a pair of pictures counts.
      page: folder of the page that the votes must belong to; default: the page of the first file.

    Raises:
      NotFoundError: the page is not there.
      DamagedError: a file is not a file of votes, or one of its votes is incomplete.
      UserError: a file belongs to another page, a vote names a model that the page does not have,
        or there is no vote at all.
    """
    wanted: tuple[str, list[str], str] | None = None
    if page is not None:
        found = read_page(page)
        wanted = found["id"], [each["title"] for each in found["contenders"]], str(page)
    games: dict[tuple[Any, ...], tuple[str, Game]] = {}
    voters, total = set(), 0
    for file in files:
        content = read_json(file, _REMEDY)
        own = _head(file, content)
        wanted = wanted or (*own, str(file))
        if own != wanted[:2]:
            raise UserError(
                f"{file} is from another page than {wanted[2]} ({own[0]}, not {wanted[0]}): give "
                "votes of one page at a time"
            )
        models = {name: place for place, name in enumerate(own[1])}
        for number, vote in enumerate(content["votes"], 1):
            left, right, score = _vote(f"{file}, vote {number}:", vote, models)
            pair = tuple(sorted((left, right)))
            made_of = (vote["prompt"], vote["seed"], vote.get("conditions", ""))
            key = (content["voter"], *made_of, pair)
            voters.add(content["voter"])
            total += 1
            if key not in games or games[key][0] <= vote["time"]:
                games[key] = vote["time"], Game(left, right, score)
    if wanted is None or not games:
        raise UserError(f"there is no vote in {', '.join(map(str, files))}: vote on the page first")
    kept = [game for _, game in games.values()]
    return Ballot(wanted[0], wanted[1], kept, len(voters), total - len(kept))


def _head(file: Path, content: dict[str, Any]) -> tuple[str, list[str]]:
    """The page's id and the models."""
    if content.get("format") != FORMAT:
        raise DamagedError(
            f"{file} is not a file of votes (its format is not {FORMAT!r}): {_REMEDY}"
        )
    models = content.get("models")
    is_right = {
        "page": isinstance(content.get("page"), str),
        "voter": isinstance(content.get("voter"), str),
        "models": isinstance(models, list)
        and all(isinstance(name, str) for name in models)
        and len(set(models)) == len(models),
        "votes": isinstance(content.get("votes"), list),
    }
    for name, right in is_right.items():
        if not right:
            told = str(content.get(name))[:60]
            raise DamagedError(f"{file} is damaged (its {name!r} is {told}): {_REMEDY}")
    return content["page"], content["models"]


def _vote(where: str, vote: Any, models: dict[str, int]) -> tuple[int, int, float]:
    """Indices of the left and the right model, and the left one's score."""
    if not isinstance(vote, dict):
        raise DamagedError(f"{where} it is {str(vote)[:60]}, not a JSON object: {_REMEDY}")
    for name in (*_TEXTS, *({"conditions"} & vote.keys())):
        if not isinstance(vote.get(name), str):
            raise DamagedError(f"{where} its {name!r} is {str(vote.get(name))[:60]}: {_REMEDY}")
    if type(vote.get("seed")) is not int:
        raise DamagedError(f"{where} its 'seed' is {str(vote.get('seed'))[:60]}: {_REMEDY}")
    if vote["choice"] not in _SCORES:
        raise DamagedError(
            f"{where} its choice is {vote['choice'][:60]!r}, not one of {', '.join(_SCORES)}: "
            f"{_REMEDY}"
        )
    for side in ("left", "right"):
        if vote[side] not in models:
            raise UserError(
                f"{where} the page has no model {vote[side][:60]!r}, only {', '.join(models)}: "
                f"{_REMEDY}"
            )
    if vote["left"] == vote["right"]:
        raise DamagedError(f"{where} both sides are {vote['left'][:60]!r}: {_REMEDY}")
    return models[vote["left"]], models[vote["right"]], _SCORES[vote["choice"]]

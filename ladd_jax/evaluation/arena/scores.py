"""The scores from votes: Elo of each model and win rates of each pair, as text and as JSON."""

import json
from pathlib import Path
from typing import Any

from ladd_jax.evaluation.arena.elo import Rating, WinRate, ratings, win_rates
from ladd_jax.evaluation.arena.votes import Ballot
from ladd_jax.evaluation.rows import aligned
from ladd_jax.names import counted
from ladd_jax.whole_files import write_text_whole


class Scores:
    """Scores of all models with votes, the best one first.

    Attributes:
      models: (name, rating, (wins, ties, losses)) of each model.
      pairs: (name, name, win rate) of each pair that met, with the better model first.
    """

    def __init__(self, ballot: Ballot, resamples: int, seed: int = 0):
        """Scores votes.

        Args:
          ballot: the votes.
          resamples: see `ratings`.
          seed: see `ratings`.
        """
        self._ballot = ballot
        rates = win_rates(ballot.games)
        counts = [[0, 0, 0] for _ in ballot.models]
        for rate in rates:
            for place, own in (
                (rate.first, (rate.wins, rate.ties, rate.losses)),
                (rate.second, (rate.losses, rate.ties, rate.wins)),
            ):
                counts[place] = [a + b for a, b in zip(counts[place], own, strict=True)]
        found = ratings(ballot.games, len(ballot.models), resamples, seed)
        order = sorted(
            (place for place, own in enumerate(counts) if any(own)), key=lambda i: -found[i].elo
        )
        self.models: list[tuple[str, Rating, list[int]]] = [
            (ballot.models[i], found[i], counts[i]) for i in order
        ]
        rank = {place: i for i, place in enumerate(order)}
        turned = [r if rank[r.first] < rank[r.second] else _turned(r) for r in rates]
        turned.sort(key=lambda r: (rank[r.first], rank[r.second]))
        self.pairs: list[tuple[str, str, WinRate]] = [
            (ballot.models[r.first], ballot.models[r.second], r) for r in turned
        ]

    def __str__(self) -> str:
        """Two tables, and the number of votes they are based on."""
        ballot = self._ballot
        told = f"{counted(len(ballot.games), 'vote')} of {counted(ballot.voters, 'voter')}"
        if ballot.repeated:
            told += f"; {counted(ballot.repeated, 'older vote')} on the same pictures left out"
        models = [["model", "won", "tied", "lost", "Elo", "95% interval"]]
        for name, rating, counts in self.models:
            numbers = (f"{rating.elo:.1f}", f"{rating.low:.1f} to {rating.high:.1f}")
            models.append([name, *map(str, counts), *numbers])
        pairs = [["model", "against", "won", "tied", "lost", "win rate", "95% interval"]]
        for first, second, rate in self.pairs:
            counts = [rate.wins, rate.ties, rate.losses]
            interval = f"{rate.low:.1%} to {rate.high:.1%}"
            pairs.append([first, second, *map(str, counts), f"{rate.rate:.1%}", interval])
        return "\n\n".join([aligned(models, 1), aligned(pairs, 2), told])

    def write(self, path: Path) -> None:
        """Writes the scores as JSON, complete or not at all."""
        ballot = self._ballot
        content: dict[str, Any] = {
            "page": ballot.page,
            "votes": len(ballot.games),
            "voters": ballot.voters,
            "models": [
                {
                    "model": name,
                    "elo": rating.elo,
                    "interval": [rating.low, rating.high],
                    **dict(zip(("wins", "ties", "losses"), counts, strict=True)),
                }
                for name, rating, counts in self.models
            ],
            "pairs": [
                {
                    "model": first,
                    "against": second,
                    "wins": rate.wins,
                    "ties": rate.ties,
                    "losses": rate.losses,
                    "win_rate": rate.rate,
                    "interval": [rate.low, rate.high],
                }
                for first, second, rate in self.pairs
            ],
        }
        write_text_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _turned(rate: WinRate) -> WinRate:
    """The same win rate seen from the other model."""
    return WinRate(
        rate.second,
        rate.first,
        rate.losses,
        rate.ties,
        rate.wins,
        1 - rate.rate,
        1 - rate.high,
        1 - rate.low,
    )

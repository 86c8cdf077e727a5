"""Files of votes: what is whole is scored, what is not is one sentence with file and place."""

import json

import pytest

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.evaluation.arena.elo import Game
from ladd_jax.evaluation.arena.scores import Scores
from ladd_jax.evaluation.arena.votes import FORMAT, read_votes

MODELS = ["A, 4 steps", "قطة 🦊", "</script>"]


def vote(left=0, right=1, choice="left", seed=0, time="2026-01-01T00:00:00.000Z", prompt="cat"):
    return {
        "prompt": prompt, "seed": seed, "left": MODELS[left], "right": MODELS[right],
        "choice": choice, "time": time,
    }  # fmt: skip


def content(votes, voter="v", page="p", models=MODELS):
    return {"format": FORMAT, "page": page, "models": models, "voter": voter, "votes": votes}


@pytest.fixture
def write(tmp_path):
    def write(name, given):
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_votes_of_several_voters_are_read_together(write):
    one = write("a.json", content([vote(), vote(1, 2, "tie")], "v"))
    two = write("b.json", content([vote(choice="right")], "w"))
    found = read_votes([one, two])
    assert found.games == [Game(0, 1, 1.0), Game(1, 2, 0.5), Game(0, 1, 0.0)]
    assert (found.page, found.models, found.voters, found.repeated) == ("p", MODELS, 2, 0)


def test_of_one_voters_votes_on_a_pair_the_newest_counts(write):
    old = content([vote(), vote(seed=1)])
    new = content([vote(1, 0, "left", time="2026-01-02T00:00:00.000Z"), vote(prompt="dog")])
    for order in ((old, new), (new, old)):
        files = [write(f"{i}.json", each) for i, each in enumerate(order)]
        found = read_votes(files)
        assert found.voters == 1 and found.repeated == 1
        assert sorted(found.games) == [Game(0, 1, 1.0), Game(0, 1, 1.0), Game(1, 0, 1.0)]


def without(name):
    found = vote()
    del found[name]
    return found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", r"v.json is damaged \(it is empty\): export it again"),
        ('{"format": ', r"v.json is damaged \(.*line 1"),
        ("[]", "holds no JSON object"),
        ({"rows": []}, "v.json is not a file of votes"),
        (content([]) | {"models": ["a", "a"]}, "its 'models' is"),
        (content([]) | {"votes": {}}, "its 'votes' is {}"),
        (content([]) | {"voter": 3}, "its 'voter' is 3"),
        (content([vote(), 3]), "v.json, vote 2: it is 3, not a JSON object"),
        (content([vote(), without("time")]), "v.json, vote 2: its 'time' is None"),
        (content([vote() | {"seed": "0"}]), "v.json, vote 1: its 'seed' is 0"),
        (content([vote(choice="both")]), "vote 1: its choice is 'both', not one of left, tie"),
        (content([vote(1, 1)]), "vote 1: both sides are"),
    ],
)
def test_what_is_damaged_is_told_with_its_place(write, given, words):
    with pytest.raises(DamagedError, match=words):
        read_votes([write("v.json", given)])


def test_other_models_pages_and_no_votes_are_told(write, tmp_path):
    unknown = write("u.json", content([vote() | {"left": "C"}]))
    with pytest.raises(UserError, match="u.json, vote 1: the page has no model 'C', only A, 4 st"):
        read_votes([unknown])
    one, other = write("a.json", content([vote()])), write("b.json", content([vote()], page="q"))
    with pytest.raises(UserError, match="b.json is from another page than .*a.json .q, not p"):
        read_votes([one, other])
    with pytest.raises(UserError, match="there is no vote in .*e.json: vote on the page first"):
        read_votes([write("e.json", content([]))])
    with pytest.raises(NotFoundError, match="has no arena.json: name a folder that --compare wr"):
        read_votes([one], tmp_path)
    write("arena.json", {"id": "p", "contenders": [{"title": name} for name in MODELS]})
    assert len(read_votes([one], tmp_path).games) == 1
    write("arena.json", {"id": "x", "contenders": []})
    with pytest.raises(UserError, match="a.json is from another page than"):
        read_votes([one], tmp_path)
    write("arena.json", {"id": "x"})
    with pytest.raises(DamagedError, match="it has no id or no contenders"):
        read_votes([one], tmp_path)


def test_scores_are_two_tables_and_json_with_the_best_first(write, tmp_path):
    votes = [vote(seed=i, choice="right") for i in range(12)] + [vote(seed=12, choice="tie")]
    scores = Scores(read_votes([write("v.json", content(votes))]), 200)
    text = str(scores)
    assert text.index("قطة") < text.index("A, 4 steps") and "13 votes of 1 voter" in text
    # Nobody saw the third.
    assert MODELS[2] not in text
    scores.write(tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in found["models"]] == [MODELS[1], MODELS[0]]
    best, worst = found["models"]
    assert best["elo"] + worst["elo"] == pytest.approx(2000) and best["interval"][0] > 1000
    (pair,) = found["pairs"]
    assert (pair["model"], pair["against"]) == (MODELS[1], MODELS[0])
    assert (pair["wins"], pair["ties"], pair["losses"]) == (12, 1, 0)
    assert pair["interval"][0] < pair["win_rate"] == 12.5 / 13 < pair["interval"][1]

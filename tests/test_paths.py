"""Paths as users write them."""

import unicodedata
from pathlib import Path

import pytest

from ladd_jax.config.arguments import parse_arguments
from ladd_jax.data.image_records import open_images
from ladd_jax.data.prompt_sets import names_prompts
from ladd_jax.data.prompts import read_prompts
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.evaluation.arena.entries import read_entries
from ladd_jax.paths import expand, expand_file, matches, near


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("data/1.tar", "data/2.tar", "data/more/3.tar", "data/a,b.tar", "data/[x].tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("data/1.tar", ["data/1.tar"]),
        ("~/data/1.tar", ["~/data/1.tar"]),
        ("data/?.tar", ["data/1.tar", "data/2.tar"]),
        ("~/data/[12].tar", ["~/data/1.tar", "~/data/2.tar"]),
        ("data/**/[0-9].tar", ["data/1.tar", "data/2.tar", "data/more/3.tar"]),
        ("data/2.tar, data/1.tar", ["data/2.tar", "data/1.tar"]),
        ("data/2.tar,data/?.tar", ["data/2.tar", "data/1.tar"]),
        # What exists is meant as it stands.
        ("data/a,b.tar", ["data/a,b.tar"]),
        ("data/[x].tar", ["data/[x].tar"]),
        ("data", ["data"]),
    ],
)
def test_one_path_a_pattern_and_a_list_name_files(home, path, found):
    assert matches(path) == [expand(name) for name in found]


def test_a_list_may_be_longer_than_names_can_be(home):
    names = [f"{number:03d}.txt" for number in range(60)]
    for name in names:
        (home / name).write_text(name)
    listed = ",".join(names)
    assert len(matches(listed)) == 60 and names_prompts(listed)
    assert read_prompts(listed) == names
    assert len(read_entries([listed])) == 60
    with pytest.raises(NotFoundError, match=r"no file 060\.txt"):
        open_images(f"{listed},060.txt")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("dtaa/1.tar", "no file dtaa/1.tar, and data/1.tar is there: check the path"),
        ("data/1.tra", "no file data/1.tra, and data/1.tar is there"),
        ("data/1.tar,data/mroe/3.tar", "no file data/mroe/3.tar, and data/more/3.tar is there"),
        ("data/zzzzzzz/qqqqqq", "no file data/zzzzzzz/qqqqqq, and of its folders data is there"),
        ("zzzzzzz", "no file zzzzzzz: check the path"),
        ("data/*.txt", "no file matches data/*.txt: check the pattern"),
        (",", "',' names no file: check the path"),
        ("dtaa/*.tar", "no file matches dtaa/*.tar; dtaa does not exist, and data is there"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(home, path, words):
    with pytest.raises(NotFoundError) as raised:
        matches(path)
    assert words in str(raised.value)


def test_a_link_to_nothing_is_told_to_be_one(home):
    Path("link.tar").symlink_to("gone.tar")
    with pytest.raises(
        NotFoundError, match=r"no file link\.tar, and link\.tar is a link to nothing"
    ):
        matches("link.tar")


def test_a_user_who_is_not_known_is_named():
    with pytest.raises(UserError, match="~nobody-here/x begins with a user who is not known"):
        expand("~nobody-here/x")


def test_the_last_folder_that_is_there_is_that_of_an_absolute_path(home):
    assert near(home / "qqqqqqq/zzz") == f", and of its folders {home} is there"


def test_a_path_with_commas_is_one_argument_of_a_config():
    defaults = dict(data="", steps=3, weights="")
    found = parse_arguments("data=a.tar,b.tar,steps=5,weights=~/w", defaults)
    assert found == dict(data="a.tar,b.tar", steps=5, weights="~/w")
    with pytest.raises(UserError, match="'4' after the config's colon is not name=value"):
        parse_arguments("steps=3,4", defaults)


def test_files_of_several_kinds_are_no_pictures(home):
    Path("data/t.parquet").touch()
    with pytest.raises(UserError, match=r"names data/t\.parquet beside data/1\.tar: name one"):
        open_images("data/1.tar,data/t.parquet")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_is_found_in_either_form_of_unicode(tmp_path, form):
    place = tmp_path / unicodedata.normalize(form, "\u00e9") / "x"
    place.parent.mkdir()
    place.touch()
    for other in ("NFC", "NFD"):
        typed = tmp_path / unicodedata.normalize(other, "\u00e9")
        assert expand(typed / "x") == place and matches(typed / "x") == [place]
        # What is made there is made in the folder that there is.
        assert expand(typed / "new") == place.with_name("new")


@pytest.mark.parametrize(
    ("name", "words"),
    [("data", "--out=data is a folder: name a file"),
     ("data/nowhere/a.json", "is in no folder where you may write, and of its folders data is"),
     ("data/1.tar/a.json", "is in no folder where you may write")],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_the_work(home, name, words):
    with pytest.raises(UserError, match=words):
        expand_file(name, "out", "")
    assert expand_file("new.json", "out", "") == Path("new.json")

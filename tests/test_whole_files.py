"""Files appear whole, and JSON that is not is named with what to do."""

import os

import pytest

from ladd_jax.errors import DamagedError
from ladd_jax.whole_files import publish, read_json, whole, write_text_whole, write_whole

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 886\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"a\.json is damaged \(it is empty\): get it again"),
        (" \n", r"is damaged \(it is empty\)"),
        (POINTER, r"a\.json is a pointer of git-lfs, and not the file: run `git lfs pull`"),
        ('{"a": ', r"a\.json is damaged \(.*\): get it again"),
        ("[1]", r"a\.json is damaged \(it holds no JSON object\)"),
        ("null", r"is damaged \(it holds no JSON object\)"),
        ("[" * 100_000, r"a\.json is damaged"),
        ('{"a": [{"b": 1, "c": 2, "c": 2}]}', r"a\.json is damaged \(it has 'c' twice\): get it"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, words):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(DamagedError, match=words):
        read_json(file)


def test_json_that_is_missing_or_a_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DamagedError, match=r"a\.json is missing: get it again"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DamagedError, match=r"is damaged \(it is a folder\): make it anew"):
        read_json(tmp_path, "make it anew")


def test_json_that_is_not_utf8_is_named_and_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DamagedError, match=r"a\.json is damaged"):
        read_json(file)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}


def test_a_file_has_its_name_only_once_its_bytes_and_its_folder_are_on_disk(tmp_path, monkeypatch):
    told = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (told.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("replace"), replace(a, b)))
    write_text_whole(tmp_path / "a.txt", "text")
    part, renamed, folder = told
    assert part.endswith(".partial") and renamed == "replace" and folder == str(tmp_path)

    told.clear()
    (tmp_path / "partial" / "deep").mkdir(parents=True)
    (tmp_path / "partial" / "deep" / "b").write_text("b")
    publish(tmp_path / "partial", tmp_path / "whole")
    before = told[: told.index("replace")]
    assert str(tmp_path / "partial" / "deep" / "b") in before
    assert (tmp_path / "whole" / "deep" / "b").read_text() == "b"


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(file, fail)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_fails_half_way_is_gone(tmp_path):
    for parent, error in ((tmp_path, KeyError), (tmp_path / "file", NotADirectoryError)):
        (tmp_path / "file").write_text("")
        with pytest.raises(error), whole(parent / "folder") as partial:
            partial.mkdir()
            (partial / "a").write_text("half")
            raise KeyError
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

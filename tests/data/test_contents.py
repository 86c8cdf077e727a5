"""What becomes of a set of shards whose data are others than before."""

import numpy as np
import pytest

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import (
    apply,
    compare,
    digests,
    in_turn,
    read_contents,
    same,
    summary,
    write_contents,
)
from ladd_jax.data.shard_sets import Layout, is_complete
from ladd_jax.errors import DamagedError

SQUARE, WIDE = Bucket(2, 2), Bucket(2, 4)
PER_SHARD = 3


def contents(**texts):
    return {Bucket.parse(name[1:]): digests(text) for name, text in texts.items()}


def files(directory):
    return {
        str(file.relative_to(directory)): file.read_text()
        for file in directory.rglob("*array_record*")
    }


def written(directory, made_of):
    """Files with their names as what they hold, and the mark of a complete set."""
    layout = Layout({bucket: len(found) for bucket, found in made_of.items()}, PER_SHARD, {})
    for shard in layout.shards():
        shard.path(directory).parent.mkdir(parents=True, exist_ok=True)
        shard.path(directory).write_text(f"{shard.bucket.name}/{shard.index}")
    write_contents(directory, made_of)
    (directory / "null_text.npz").touch()
    return files(directory)


def changed(directory, old, new):
    found = compare(directory, old, new, PER_SHARD)
    apply(directory, found, new)
    assert not is_complete(directory)
    assert same(read_contents(directory), new)
    return found


def test_records_at_the_end_leave_whole_shards_and_move_them_to_their_new_names(tmp_path):
    old, new = contents(b2x2="abcdefg", b2x4="xy"), contents(b2x2="abcdefghijk", b2x4="xy")
    written(tmp_path, old)
    found = changed(tmp_path, old, new)
    assert not found.stale and not found.first and found.missing == 2
    # The last one grows, and a bucket without new records is as it was.
    assert files(tmp_path) == {
        "2x2/2.0.0/latents-b2x2.array_record-00000-of-00004": "2x2/0",
        "2x2/2.0.0/latents-b2x2.array_record-00001-of-00004": "2x2/1",
        "2x4/2.0.0/latents-b2x4.array_record-00000-of-00001": "2x4/0",
    }


def test_a_record_that_differs_takes_its_shard_alone_with_it(tmp_path):
    old, new = contents(b2x2="abcdefghi"), contents(b2x2="abcdXfghi")
    written(tmp_path, old)
    found = changed(tmp_path, old, new)
    assert list(found.stale.values()) == [(SQUARE, 1)] and found.first == {SQUARE: 4}
    assert sorted(files(tmp_path).values()) == ["2x2/0", "2x2/2"]


def test_fewer_records_and_a_bucket_that_is_gone_leave_nothing_of_them(tmp_path):
    old, new = contents(b2x2="abcdefgh", b2x4="xy"), contents(b2x2="abcd")
    written(tmp_path, old)
    found = changed(tmp_path, old, new)
    assert found.first == {SQUARE: 4, WIDE: 0}
    assert sorted(files(tmp_path).values()) == ["2x2/0"]
    assert not (tmp_path / "2x4").exists()


@pytest.mark.parametrize("text", ["abcdefghijk", "abXdefghijk"])
def test_a_change_that_was_stopped_half_way_is_carried_on(tmp_path, text):
    old, new = contents(b2x2="abcdefg"), contents(b2x2=text)
    for name in ("once", "twice"):
        written(tmp_path / name, old)
    # Renamed and removed, and killed before the set says of what it is.
    apply(tmp_path / "twice", compare(tmp_path / "twice", old, new, PER_SHARD), new)
    write_contents(tmp_path / "twice", old)
    for name in ("once", "twice"):
        changed(tmp_path / name, old, new)
    assert files(tmp_path / "once") == files(tmp_path / "twice")


def test_samples_are_made_of_the_records_in_turn():
    found = contents(b2x2="abc")
    assert same(in_turn(found, 0), found)
    assert same(in_turn(found, 5), contents(b2x2="abcab"))
    assert same(in_turn(contents(b2x2="abcd"), 3), found)


def test_one_digest_stands_for_records_buckets_and_what_else_went_in():
    found = {
        summary(contents(b2x2="ab"), {}), summary(contents(b2x2="ba"), {}),
        summary(contents(b2x4="ab"), {}), summary(contents(b2x2="a", b2x4="b"), {}),
        summary(contents(b2x2="ab"), {"weights": "1"}),
    }  # fmt: skip
    assert len(found) == 5


def test_a_damaged_file_of_contents_is_named_and_one_of_an_older_version_is_missing(tmp_path):
    assert read_contents(tmp_path) is None
    (tmp_path / "records.npz").write_bytes(b"PK")
    with pytest.raises(DamagedError, match=r"records\.npz is damaged .*: put a copy of it there"):
        read_contents(tmp_path)


def test_texts_are_told_apart_by_their_digests():
    found = digests(["a", "b", "a", "\ud800"])
    assert found.dtype == np.uint64 and len(found) == 4
    assert found[0] == found[2] and len(set(found.tolist())) == 3

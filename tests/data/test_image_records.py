"""Image folders and WebDataset tars: which records there are, and which are left out."""

import gzip
import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ladd_jax.data.image_folders import ImageFolder
from ladd_jax.data.image_pairs import ImageTars
from ladd_jax.data.image_records import open_images
from ladd_jax.data.images import decode_image
from ladd_jax.data.picture_folder import PictureFolder
from ladd_jax.data.records import Unreadable
from ladd_jax.errors import UserError
from ladd_jax.whole_files import LFS_POINTER


def picture(value):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def folder(root, lines, images=()):
    for name, data in dict(images).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    content = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "metadata.jsonl").write_text("".join(f"{line}\n" for line in content))
    return root


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            data = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def contents(source):
    """(key, red value, prompt) of all records."""
    records = [source[i] for i in range(len(source))]
    assert [record.key for record in records] == list(source.keys)
    return [(r.key, int(decode_image(r.data)[0, 0, 0]), r.prompt) for r in records]


def test_a_folder_is_read_in_order_of_file_name(tmp_path, caplog):
    folder(
        tmp_path,
        [
            {"file_name": "b/2.png", "text": "two", "n": 1},
            {"file_name": "a.png", "text": "one"},
            {"file_name": "b/10.png", "text": " ten "},
        ],
        {"a.png": picture(1), "b/2.png": picture(2), "b/10.png": picture(10), "c.png": b"unlisted"},
    )
    (tmp_path / "b" / "old.tar").write_bytes(b"")
    source = open_images(tmp_path, tell_unread=True)
    assert isinstance(source, ImageFolder)
    assert "holds what is not read: 1 picture, such as c.png; to" in caplog.text
    assert "holds what is not read: 1 tar, such as b/old.tar; to" in caplog.text
    assert contents(source) == [("a.png", 1, "one"), ("b/10.png", 10, "ten"), ("b/2.png", 2, "two")]


def test_a_column_picks_among_several_texts(tmp_path):
    folder(
        tmp_path,
        [{"file_name": "a.png", "text": "one", "caption": "two"}],
        {"a.png": picture(1)},
    )
    assert open_images(tmp_path, "caption")[0].prompt == "two"
    with pytest.raises(ValueError, match="line 1 has text and caption"):
        open_images(tmp_path)


GOOD = {"file_name": "a.png", "text": "one"}


@pytest.mark.parametrize(
    "lines, message",
    [
        ([GOOD, '{"file_name": "b.png", "text": "tw'], "line 2 is not JSON"),
        ([GOOD, ""], "line 2 is empty"),
        (
            [GOOD, '{"file_name": "a.png", "text": "x", "text": "y"}'],
            "line 2 has the field 'text' ",
        ),
        ([GOOD, {"text": "two"}], "line 2 has no file_name"),
        ([GOOD, {"file_name": 3, "text": "two"}], "line 2 has no file_name"),
        ([GOOD, {"file_name": "b.png"}], "line 2 has no column 'text': its columns are file_name"),
        ([{"file_name": "../a.png", "text": "a"}], r"line 1 names '../a.png' outside"),
        ([{"file_name": "b/../../a.png", "text": "a"}], "line 1 names .* outside"),
        ([{"file_name": "/a.png", "text": "a"}], "line 1 names '/a.png' outside"),
        ([GOOD | {"held_out": "maybe"}], "line 1 has 'maybe' as held_out: write true or false"),
        ([GOOD | {"held_out": 1}], "line 1 has 1 as held_out: write true or false"),
        ([], "metadata.jsonl holds no records"),
    ],
)
def test_bad_metadata_are_an_error_that_names_the_line(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message) as error:
        open_images(folder(tmp_path, lines))
    assert "metadata.jsonl" in str(error.value)


@pytest.mark.parametrize("name", ["gone.png", "b", "nul\0.png", "x" * 5000])
def test_a_file_that_cannot_be_read_is_an_error_of_its_record_alone(tmp_path, name):
    (tmp_path / "b").mkdir()
    lines = [GOOD, {"file_name": name, "text": "two"}]
    source = open_images(folder(tmp_path, lines, {"a.png": picture(1)}))
    with pytest.raises(ValueError, match="named in metadata.jsonl, cannot be read: "):
        source[list(source.keys).index(name)]
    assert source[list(source.keys).index("a.png")].prompt == "one"


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    # It keeps the files elsewhere, and fills the folder with links to them.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f").write_bytes(picture(7))
    root = folder(tmp_path / "snapshots" / "main", [GOOD], {"b.png": b""})
    os.symlink("../../blobs/1f", root / "a.png")
    assert contents(open_images(root)) == [("a.png", 7, "one")]


def test_links_out_of_a_folder_are_not_followed_and_those_within_are(tmp_path):
    (tmp_path / "outside.png").write_bytes(picture(7))
    root = folder(tmp_path / "in", [GOOD, GOOD | {"file_name": "c.png"}], {"b.png": picture(8)})
    os.symlink(tmp_path / "outside.png", root / "a.png")
    os.symlink("b.png", root / "c.png")
    source = open_images(root)
    with pytest.raises(UserError, match=r"a\.png, .* cannot be read: it is a link out of .*: copy"):
        source[0]
    assert source[1].data == picture(8)
    (root / "metadata.jsonl").unlink()
    for name in "abc":
        (root / f"{name}.txt").write_text(name)
    source = open_images(root)
    with pytest.raises(UserError, match=r"a\.png cannot be read: it is a link out of"):
        source[0]
    assert [source[i].prompt for i in (1, 2)] == ["b", "c"]


CAFE = "caf\u00e9", "cafe\u0301"
"""One name in the two forms of Unicode."""


@pytest.mark.parametrize(("listed", "on_disk"), [CAFE, CAFE[::-1]])
def test_a_file_is_found_in_either_form_of_unicode(tmp_path, listed, on_disk):
    lines = [{"file_name": f"{listed}/{on_disk}.png", "text": "one"}]
    folder(tmp_path, lines, {f"{on_disk}/{listed}.png": picture(1)})
    assert contents(open_images(tmp_path)) == [(f"{listed}/{on_disk}.png", 1, "one")]
    assert PictureFolder(tmp_path).prompts == ["one"]


@pytest.mark.parametrize(("image", "text"), [CAFE, CAFE[::-1]])
def test_a_picture_and_its_text_share_a_name_in_either_form_of_unicode(tmp_path, image, text):
    members = [(f"{image}.png", picture(1)), (f"{text}.txt", b"one")]
    for name, data in members:
        (tmp_path / name).write_bytes(data)
    assert contents(open_images(tmp_path)) == [(image, 1, "one")]
    packed = tar(tmp_path / "a.tar", members)
    assert contents(ImageTars([packed])) == [(f"a/{image}", 1, "one")]


def test_two_files_whose_names_only_look_alike_keep_their_own_texts(tmp_path):
    for value, name in enumerate(CAFE):
        (tmp_path / f"{name}.png").write_bytes(picture(value))
        (tmp_path / f"{name}.txt").write_text(f"number {value}")
    found = contents(open_images(tmp_path))
    assert sorted(found) == sorted((n, i, f"number {i}") for i, n in enumerate(CAFE))


def test_each_caption_of_a_picture_is_a_record_with_a_key_of_its_own(tmp_path, caplog):
    caplog.set_level("INFO", "ladd_jax")
    lines = [
        {"file_name": name, "text": text}
        for name, text in [("a.png", "one"), ("b.png", "two"), ("a.png", "three"), ("a.png", "one"),
                           ("a.png:2", "four")]
    ]  # fmt: skip
    pictures = {"a.png": picture(1), "b.png": picture(2), "a.png:2": picture(3)}
    found = contents(open_images(folder(tmp_path, lines, pictures)))
    assert found == [
        ("a.png", 1, "one"), ("a.png:3", 1, "three"), ("a.png:4", 1, "one"), ("a.png:2", 3, "four"),
        ("b.png", 2, "two"),
    ]  # fmt: skip
    assert "2 rows of " in caplog.text and "such as a.png: each is a record" in caplog.text


def test_a_picture_that_is_judged_has_one_prompt(tmp_path):
    twice = [GOOD, GOOD]
    folder(tmp_path, twice, {"a.png": picture(1)})
    assert PictureFolder(tmp_path).prompts == ["one"]
    folder(tmp_path, [*twice, GOOD | {"text": "two"}])
    with pytest.raises(UserError, match=r"has the prompts 'one' and 'two' for a\.png, and a pic"):
        PictureFolder(tmp_path)


def test_folders_that_notebooks_and_disks_leave_are_ignored(tmp_path):
    for name in ("cat", ".ipynb_checkpoints/cat-checkpoint", "lost+found/dog"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(picture(1))
        (tmp_path / f"{name}.txt").write_text("x")
    assert list(open_images(tmp_path).keys) == ["cat"]
    assert [file.name for file in PictureFolder(tmp_path).files] == ["cat.png"]


@pytest.mark.parametrize(
    "line", ['{"file_name": "b.png", "text": "tw', "", {"text": "x"}, {"file_name": "b.png"},
             {"file_name": "/b.png", "text": "x"}, GOOD | {"held_out": "maybe"}],
)  # fmt: skip
def test_a_bad_row_may_be_a_fault_of_its_record_alone(tmp_path, line):
    source = open_images(folder(tmp_path, [line, GOOD], {"a.png": picture(1)}), strict=False)
    assert len(source) == 2 and source[0].prompt == "one"
    assert source.keys[1].endswith("metadata.jsonl, line 1")
    with pytest.raises(UserError, match="line 1"):
        source[1]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    "name, rows, message",
    [
        ("metadata.jsonl", b'{"file_name": "b.png", "text": "caf\xe9"}', "is not UTF-8"),
        ("metadata.jsonl", b'{"file_name": "b.png"}\r{"text": "b"}', "holds carriage returns"),
        ("metadata.csv", b"b.png,a cat, sitting", "has 3 fields and the first row names 2"),
        ("metadata.csv", b"", "is empty: write a row"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_fault_of_its_record_alone(tmp_path, name, rows, message):
    good, first = b"a.png,one", b"file_name,text\n"
    if name.endswith("jsonl"):
        good, first = json.dumps(GOOD).encode(), b""
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / name).write_bytes(first + rows + b"\n" + good + b"\n")
    source = open_images(tmp_path, strict=False)
    assert len(source) == 2 and source[0].prompt == "one"
    with pytest.raises(UserError, match=rf"{name}, line {1 + bool(first)} {message}"):
        source[1]
    with pytest.raises(UserError, match=message):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_metadata_of_a_split_below_are_pointed_to(tmp_path, name):
    folder(tmp_path / "train", [GOOD], {"a.png": picture(1)})
    (tmp_path / "train" / "metadata.jsonl").rename(tmp_path / "train" / name)
    with pytest.raises(UserError, match=rf"holds 1 picture and .* in train/{name}: give .*/train,"):
        open_images(tmp_path)


def test_tars_are_read_in_order_of_tar_and_name(tmp_path):
    tar(
        tmp_path / "1.tar",
        [("./c.txt", "three"), ("./c.PNG", picture(3)), ("sub/d.json", '{"caption": "four"}'),
         ("sub/d.jpg", picture(4)), ("sub/d.cls", "9"), ("._c.png", b"resource fork"),
         (".txt", "hidden")],
    )  # fmt: skip
    tar(tmp_path / "0.tar", [("c.webp", picture(2)), ("c.txt", "\ufefftwo\n"), ("readme", "x")])
    expected = [("0/c", 2, "two"), ("1/c", 3, "three"), ("1/sub/d", 4, "four")]
    source = open_images(tmp_path)
    assert isinstance(source, ImageTars)
    assert contents(source) == contents(open_images(str(tmp_path / "*.tar"))) == expected
    assert contents(ImageTars([tmp_path / "1.tar", tmp_path / "0.tar"])) == expected
    assert contents(open_images(tmp_path / "1.tar")) == expected[1:]


def test_what_lies_beside_the_tars_of_a_folder_is_counted(tmp_path, caplog):
    for name in ("0.tar", "deep/1.tar"):
        tar(tmp_path / name, [("c.webp", picture(2)), ("c.txt", "two")])
    for name in ("2.tar.gz", "x.parquet", "deep/y.arrow", "a.png", "a.txt", ".b.png"):
        (tmp_path / name).write_bytes(b"")
    assert contents(open_images(tmp_path, tell_unread=True)) == [("0/c", 2, "two")]
    told = ["1 tar", "1 compressed tar", "2 tables", "1 picture"]
    assert len(caplog.messages) == len(told)
    for words in told:
        assert f"also holds what is not read: {words}, such as " in caplog.text


def test_tars_of_a_folder_are_those_that_are_seen_in_whatever_letters(tmp_path):
    tar(tmp_path / "0.TAR", [("c.webp", picture(2)), ("c.txt", "two")])
    (tmp_path / "._0.TAR").write_bytes(b"\0\5\x16\7 of a Mac")
    assert contents(open_images(tmp_path)) == [("0/c", 2, "two")]


def test_tars_whose_records_would_have_the_same_names_are_refused(tmp_path):
    for name in ("0.tar", "0.TAR"):
        tar(tmp_path / name, [("c.png", picture(1)), ("c.txt", name)])
    with pytest.raises(UserError, match=r"0\.TAR and .*0\.tar differ only in .*: rename one of"):
        open_images(tmp_path)


@pytest.mark.parametrize("form", ["gnu", "pax --sparse-version=0.1", "pax --sparse-version=1.0"])
def test_links_and_sparse_members_of_a_tar_are_faults_of_their_records_alone(tmp_path, form):
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(name)
    with (tmp_path / "a.png").open("wb") as file:
        file.write(picture(1))
        # Whole blocks without bytes are holes on every file system of Linux.
        file.truncate(2**20)
    (tmp_path / "b.png").write_bytes(picture(2))
    os.link(tmp_path / "b.png", tmp_path / "c.png")
    os.symlink("b.png", tmp_path / "d.png")
    names = [f"{name}.{suffix}" for name in "abcd" for suffix in ("png", "txt")]
    command = f"tar --sparse --format={form} -C {tmp_path} -cf {tmp_path}/0.tar"
    subprocess.run([*command.split(), *names], check=True)
    source = ImageTars([tmp_path / "0.tar"])
    assert source.keys == ["0/a", "0/b", "0/c", "0/d"]
    assert source[1].data == picture(2)
    for place, words in (
        (0, "0/a.png is sparse: pack"),
        (2, "0/c.png is a li"),
        (3, "0/d.png is a"),
    ):
        with pytest.raises(UserError, match=words):
            source[place]


def test_tars_of_one_name_in_several_folders_keep_their_records_apart(tmp_path):
    for name in ("a", "b"):
        tar(tmp_path / name / "0.tar", [("c.png", picture(1)), ("c.txt", name)])
    source = open_images(str(tmp_path / "*" / "0.tar"))
    assert [(key, prompt) for key, _, prompt in contents(source)] == [
        ("a/0/c", "a"),
        ("b/0/c", "b"),
    ]


def test_tars_named_relative_and_absolute_are_read_together(tmp_path, monkeypatch):
    for name in ("a", "b"):
        tar(tmp_path / name / "0.tar", [("c.png", picture(1)), ("c.txt", name)])
    monkeypatch.chdir(tmp_path)
    source = open_images(f"a/0.tar,{tmp_path}/b/0.tar")
    assert {key for key, _, _ in contents(source)} == {"a/0/c", "b/0/c"}


names = st.from_regex(r"[a-z0-9_]{1,150}", fullmatch=True)


@given(st.dictionaries(names, st.integers(0, 255), min_size=1, max_size=6), st.randoms())
def test_members_need_no_order(tmp_path_factory, samples, random):
    members = [(f"{name}.png", picture(value)) for name, value in samples.items()]
    members += [(f"{name}.txt", f"is {value}") for name, value in samples.items()]
    random.shuffle(members)
    path = tar(tmp_path_factory.mktemp("tars") / "0.tar", members)
    expected = [(f"0/{name}", samples[name], f"is {samples[name]}") for name in sorted(samples)]
    assert contents(open_images(path)) == expected


def test_text_goes_before_json_unless_a_field_is_named(tmp_path):
    members = [("c.png", picture(1)), ("c.txt", "one"), ("c.json", '{"text": "two", "url": "u"}')]
    path = tar(tmp_path / "0.tar", members)
    assert open_images(path)[0].prompt == "one"
    assert open_images(path, "text")[0].prompt == "two"


@pytest.mark.parametrize(
    "members, column, message",
    [
        ([("c.txt", "one")], "", "0/c has none of jpg, jpeg, jfif, png, webp, .* one image: add"),
        ([("c.png", b"1"), ("c.jpg", b"2"), ("c.txt", "one")], "", "c has jpg and png .*: remove"),
        ([("c.png", b"1")], "", "0/c has no txt or json: write"),
        ([("c.png", b"1"), ("c.txt", "one")], "text", "0/c has no json"),
        ([("c.png", b"1"), ("c.txt", "")], "", "0/c.txt is empty"),
        ([("c.png", b"1"), ("c.txt", b"\xff")], "", "0/c.txt is not UTF-8"),
        ([("c.png", b"1"), ("c.json", "{")], "", "0/c.json is not JSON"),
        ([("c.png", b"1"), ("c.json", '{"caption": null}')], "", "0/c.json holds null"),
        ([("c.png", b"1"), ("c.json", '{"url": "u"}')], "", "0/c.json has none of prompt, text"),
    ],
)
def test_a_bad_sample_is_an_error_of_its_record_alone(tmp_path, members, column, message):
    good = [("d.png", picture(1)), ("d.txt", "one"), ("d.json", '{"text": "one"}')]
    source = open_images(tar(tmp_path / "0.tar", members + good), column)
    with pytest.raises(ValueError, match=message):
        source[0]
    assert source[1].prompt == "one"


def damaged_tars():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tars:
        for name in ("a.png", "a.txt", "b.png", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            tars.addfile(info, io.BytesIO(bytes(1000)))
    data = file.getvalue()
    below_zero = tarfile.TarInfo("b.png")
    below_zero.size = -1536
    back = below_zero.tobuf(tarfile.GNU_FORMAT)
    # Each member takes a header of 512 bytes and 1,024 bytes of content.
    return {
        "empty": b"",
        "text": b"not found" * 99,
        "cut_in_content": data[:2500],
        "cut_in_header": data[: 2 * 1536 + 100],
        "damaged_header": data[:3200] + b"\xff" * 100 + data[3300:],
        "size_below_zero": data[:1536] + back + data[1536 + len(back) :],
        "compressed": b"\x1f\x8b" + data[2:],
    }


@pytest.mark.parametrize("kind", damaged_tars())
def test_a_damaged_tar_is_an_error_that_names_it(tmp_path, kind):
    (tmp_path / "0.tar").write_bytes(damaged_tars()[kind])
    with pytest.raises(ValueError, match=r"0\.tar cannot be read as an uncompressed tar \(.*\): "):
        open_images(tmp_path)


def test_a_tar_that_git_lfs_has_not_fetched_is_told_to_be(tmp_path):
    (tmp_path / "0.tar").write_bytes(LFS_POINTER + b".github.com/spec/v1")
    with pytest.raises(UserError, match=r"0\.tar is a pointer of git-lfs, and not the file: run"):
        open_images(tmp_path)


def test_a_tar_that_is_packed_is_told_to_be(tmp_path):
    data = tar(tmp_path / "0.tar", [("a.png", picture(7)), ("a.txt", "one")]).read_bytes()
    (tmp_path / "0.tar").write_bytes(gzip.compress(data))
    with pytest.raises(UserError, match=r"0\.tar .* \(it is packed by gzip\): unpack it$"):
        open_images(tmp_path)
    (tmp_path / "0.tar").rename(tmp_path / "0.tar.gz")
    with pytest.raises(UserError, match=r"0\.tar\.gz .* \(it is packed by gzip\): unpack it$"):
        open_images(tmp_path / "0.tar.gz")
    with pytest.raises(
        UserError, match=r"0\.tar\.gz is a compressed tar, .*: unpack it to a \.tar"
    ):
        open_images(tmp_path)


def test_a_member_that_is_there_twice_is_an_error(tmp_path):
    path = tar(tmp_path / "0.tar", [("c.png", b"1"), ("c.txt", "one"), ("./c.png", b"2")])
    with pytest.raises(ValueError, match=r"0\.tar holds c\.png twice: remove one of them$"):
        open_images(path)


def test_a_file_that_is_there_in_two_ways_of_writing_its_end_is_an_error(tmp_path):
    for name in ("c.png", "c.PNG", "c.txt"):
        (tmp_path / name).write_bytes(b"1")
    words = r"holds c\.(png|PNG) twice, capitals of the suffix aside: remove one"
    with pytest.raises(ValueError, match=words):
        open_images(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_any_kind_of_picture_may_have_its_text_beside_it(tmp_path, kind):
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / f"a.{kind.lower()}")
    (tmp_path / "a.txt").write_text("red")
    assert contents(open_images(tmp_path)) == [("a", 255, "red")]


def test_pictures_without_any_text_are_counted(tmp_path):
    for name in ("a.png", "b/c.jpg", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ValueError, match="holds 2 pictures and no text beside any: write"):
        open_images(tmp_path)


def test_tars_without_records_are_an_error(tmp_path):
    tar(tmp_path / "0.tar", [("readme", "x")])
    with pytest.raises(ValueError, match=r"1 tars hold no records: .* cat\.jpg and cat\.txt"):
        open_images(tmp_path)


def test_a_path_without_images_is_an_error(tmp_path):
    for path, words in (
        (tmp_path, "give a directory with metadata.jsonl"),
        (tmp_path / "gone", "no file .*gone, and of its folders .* is there: check the path"),
        (tmp_path / "*.tar", r"no file matches .*\*\.tar: check the pattern"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            open_images(path)


@given(total=st.integers(1, 2000), part=st.sampled_from([0, 0.01, 0.05]))
def test_the_record_beyond_the_limit_stops_at_once(tmp_path_factory, total, part):
    path = tmp_path_factory.mktemp("lists") / "unreadable.jsonl"
    unreadable = Unreadable(total, path, part)
    allowed = int(np.floor(part * total + 1e-9))
    for i in range(allowed):
        unreadable.add(f"k{i}", "no image")
    assert not path.exists()
    with pytest.raises(ValueError, match=f"{allowed + 1} of {total} records cannot be read"):
        unreadable.add("last", "no image")
    assert len(path.read_text().splitlines()) == allowed + 1


def test_the_error_names_the_limit_the_list_and_the_first_few(tmp_path):
    unreadable = Unreadable(300, tmp_path / "lists" / "unreadable.jsonl")
    with pytest.raises(ValueError) as error:
        for i in range(4):
            unreadable.add(f"k{i}", ValueError(f"reason {i}"))
    message = str(error.value)
    assert "4 of 300 records cannot be read and the limit is 1 %" in message
    assert f"{tmp_path / 'lists' / 'unreadable.jsonl'}" in message
    assert "k0 (reason 0); k1 (reason 1); k2 (reason 2)" in message and "k3" not in message


def test_the_list_is_written_whole_and_goes_when_nothing_is_on_it(tmp_path):
    path = tmp_path / "unreadable.jsonl"
    unreadable = Unreadable(1000, path)
    unreadable.add("a\tb", 'no "image"')
    unreadable.write()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"key": "a\tb", "reason": 'no "image"'}
    ]
    assert os.listdir(tmp_path) == ["unreadable.jsonl"]
    Unreadable(1000, path).write()
    assert not os.listdir(tmp_path)

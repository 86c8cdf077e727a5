"""Tables of encoded images, and folders of images with a text beside each."""

import io
import json

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_image_records import contents, folder, picture, tar

from ladd_jax.data import image_tables
from ladd_jax.data.image_folders import ImageFolder
from ladd_jax.data.image_pairs import CaptionedFolder, ImageTars
from ladd_jax.data.image_records import open_images
from ladd_jax.data.image_tables import ImageTable, open_table
from ladd_jax.data.images import decode_image
from ladd_jax.errors import UserError

EXPECTED = [("0", 10, "ten"), ("1", 20, "twenty"), ("2", 30, "thirty")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The library converts into its cache, and asks the hub about some names."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(**columns):
    given = dict(
        image=[{"bytes": picture(v), "path": f"{v}.png"} for v in (10, 20, 30)],
        text=["ten", " twenty ", "thirty"],
    )
    return datasets.Dataset.from_dict(given | columns).cast_column("image", datasets.Image())


def test_parquet_and_arrow_are_read_row_by_row(tmp_path):
    for suffix, write in (("parquet", "to_parquet"), ("arrow", None)):
        file = tmp_path / f"train.{suffix}"
        if write:
            table().to_parquet(file)
        else:
            with datasets.arrow_writer.ArrowWriter(path=str(file), features=table().features) as w:
                w.write_table(table().data.table)
                w.finalize()
        source = open_images(file)
        assert isinstance(source, ImageTable)
        assert contents(source) == EXPECTED


def test_a_folder_of_parquet_files_has_the_rows_of_its_split_in_order_of_file_name(tmp_path):
    rows = table()
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows.select([2]).to_parquet(tmp_path / "set/data/train-00001-of-00002.parquet")
    rows.select([0, 1]).to_parquet(tmp_path / "set/data/train-00000-of-00002.parquet")
    rows.select([1]).to_parquet(tmp_path / "set/data/test-00000-of-00001.parquet")
    assert contents(open_images(tmp_path / "set")) == EXPECTED
    assert contents(open_images(tmp_path / "set", split="test")) == [("0", 20, "twenty")]
    assert contents(open_images(str(tmp_path / "set/data/train-*.parquet"))) == EXPECTED
    with pytest.raises(ValueError, match=r'split gone cannot be read .*Unknown split "gone".*test'):
        open_images(tmp_path / "set", split="gone")


def test_what_datasets_saved_is_read(tmp_path):
    table().save_to_disk(tmp_path / "one")
    assert contents(open_images(tmp_path / "one")) == EXPECTED
    datasets.DatasetDict(train=table(), test=table().select([0])).save_to_disk(tmp_path / "two")
    assert contents(open_images(tmp_path / "two", split="test")) == EXPECTED[:1]
    with pytest.raises(ValueError, match="its splits are train, test: set data.split"):
        open_images(tmp_path / "two", split="gone")


def test_images_without_the_types_of_the_library_are_found(tmp_path):
    binary = [picture(v) for v in (10, 20, 30)]
    structs = [{"bytes": data} for data in binary]
    for name, images in (("a", binary), ("b", structs)):
        rows = pyarrow.table({"n": [1, 2, 3], "jpg": images, "text": ["ten", "twenty", "thirty"]})
        pyarrow.parquet.write_table(rows, tmp_path / f"{name}.parquet")
        assert contents(open_images(tmp_path / f"{name}.parquet")) == EXPECTED


def test_columns_are_named_where_there_are_several(tmp_path):
    images = [{"bytes": picture(1), "path": None}] * 3
    rows = table(mask=images, caption=["a", "b", "c"]).cast_column("mask", datasets.Image())
    rows.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="image and mask of images: name one with data.image_col"):
        open_images(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has text and caption: name the column of the prompts"):
        open_images(tmp_path / "a.parquet", image_column="mask")
    source = open_images(tmp_path / "a.parquet", "caption", image_column="mask")
    assert contents(source) == [("0", 1, "a"), ("1", 1, "b"), ("2", 1, "c")]
    with pytest.raises(ValueError, match="no column 'gone': its columns are image, text"):
        open_images(tmp_path / "a.parquet", image_column="gone")


def pairs(**columns):
    other = [{"bytes": picture(v), "path": None} for v in (11, 21, 31)]
    given = dict(other=other, label=[1.0, 0.25, 0.5])
    return table(**given | columns).cast_column("other", datasets.Image())


NAMED = dict(other_column="other", preference_column="label")


def compared(source):
    """(red value, that of the other image, preference) of all records."""
    records = [source[i] for i in range(len(source))]
    reds = ([int(decode_image(data)[0, 0, 0]) for data in (r.data, r.other)] for r in records)
    return [(*red, record.preference) for red, record in zip(reds, records, strict=True)]


def test_a_pair_has_both_images_and_which_was_preferred(tmp_path):
    pairs().to_parquet(tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet", **NAMED)
    assert contents(source) == EXPECTED
    assert compared(source) == [(10, 11, 1), (20, 21, -1), (30, 31, 0)]
    pairs(label=[True, False, True]).save_to_disk(tmp_path / "saved")
    source = open_images(tmp_path / "saved", **NAMED)
    assert compared(source) == [(10, 11, 1), (20, 21, -1), (30, 31, 1)]
    # The form of Pick-a-Pic v2.
    jpg = dict(jpg_0=[picture(v) for v in (10, 20)], jpg_1=[picture(v) for v in (11, 21)])
    rows = pyarrow.table(jpg | {"caption": ["a", "b"], "label_0": [0.0, 1.0], "label_1": [1.0, 0]})
    pyarrow.parquet.write_table(rows, tmp_path / "b.parquet")
    named = dict(other_column="jpg_1", preference_column="label_0")
    assert compared(open_images(tmp_path / "b.parquet", **named)) == [(10, 11, -1), (20, 21, 1)]
    swapped = dict(image_column="jpg_1", other_column="jpg_0", preference_column="label_1")
    assert compared(open_images(tmp_path / "b.parquet", **swapped)) == [(11, 10, 1), (21, 20, -1)]


def test_columns_of_pairs_that_are_missing_or_ambiguous_are_named(tmp_path):
    pairs().to_parquet(tmp_path / "a.parquet")
    for wrong in ("other_column", "preference_column"):
        with pytest.raises(ValueError, match="no column 'gone': its columns are image, text, oth"):
            open_images(tmp_path / "a.parquet", **NAMED | {wrong: "gone"})
    with pytest.raises(ValueError, match="has image and other of images: name one with"):
        open_images(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has one column 'other' and a pair needs two: name"):
        open_images(tmp_path / "a.parquet", image_column="other", **NAMED)
    images = [{"bytes": picture(1), "path": None}] * 3
    pairs(mask=images).cast_column("mask", datasets.Image()).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="has image and mask of images beside other: name one"):
        open_images(tmp_path / "b.parquet", **NAMED)
    table().to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="has no column of images beside image: name one"):
        open_images(tmp_path / "c.parquet", other_column="image", preference_column="text")


@pytest.mark.parametrize("label", [None, float("nan"), 1.5, -0.1, float("inf"), "0.5"])
def test_a_preference_that_is_none_is_an_error_of_its_record_alone(tmp_path, label):
    labels = ["a", label] if isinstance(label, str) else [1.0, label]
    images = [picture(1), picture(2)]
    rows = pyarrow.table(dict(image=images, other=images, text=["a", "b"], label=labels))
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet", image_column="image", **NAMED)
    with pytest.raises(ValueError, match="row 1 holds .* as its preference: write a number from 0"):
        source[1]
    if not isinstance(label, str):
        assert source[0].preference == 1


def test_a_pair_without_its_other_image_is_an_error_of_its_record_alone(tmp_path):
    pairs(other=[{"bytes": picture(11), "path": None}, None, None]).to_parquet(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet", **NAMED)
    assert source[0].preference == 1
    with pytest.raises(ValueError, match="row 1, column 'other' has no image"):
        source[1]


def test_pairs_are_of_tables_alone(tmp_path):
    places = [folder(tmp_path / "a", [{"file_name": "a.png", "text": "one"}], {"a.png": b""})]
    for name, files in (("b", ("a.png", "a.txt")), ("c", ())):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"none")
        places.append(tmp_path / name)
    places.append(tar(tmp_path / "c/0.tar", [("a.png", picture(1)), ("a.txt", "one")]))
    words = "is not a table and data.other_column is 'other': give"
    for place in places:
        with pytest.raises(ValueError, match=words):
            open_images(place, **NAMED)


def test_class_labels_are_their_names(tmp_path):
    rows = table(label=[1, 0, -1]).remove_columns("text")
    rows = rows.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    rows.to_parquet(tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet", "label")
    assert [source[0].prompt, source[1].prompt] == ["dog", "cat"]
    with pytest.raises(ValueError, match="row 2 holds -1 as its prompt"):
        source[2]


def test_a_bad_row_is_an_error_of_its_own_alone(tmp_path):
    images = [{"bytes": picture(10), "path": None}, None, {"bytes": None, "path": "gone.png"}]
    rows = pyarrow.table({"image": images, "text": ["ten", "twenty", "thirty"]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet")
    assert source[0].prompt == "ten"
    with pytest.raises(ValueError, match="row 1 has no image"):
        source[1]
    with pytest.raises(ValueError, match=r"row 2 names the image gone\.png, which cannot be read"):
        source[2]
    table(text=["ten", None, " "]).to_parquet(tmp_path / "b.parquet")
    source = open_images(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="row 1 holds null as its prompt"):
        source[1]
    with pytest.raises(ValueError, match="row 2 is empty"):
        source[2]


def test_a_row_names_files_beside_its_table_and_no_others(tmp_path, monkeypatch):
    place = tmp_path / "set"
    place.mkdir()
    (place / "in.png").write_bytes(picture(10))
    (tmp_path / "out.png").write_bytes(picture(20))
    (place / "link.png").symlink_to("../out.png")
    names = [str(place / "in.png"), "in.png", str(tmp_path / "out.png"), "../out.png", "link.png"]
    images = [{"bytes": None, "path": name} for name in names]
    rows = pyarrow.table({"image": images, "text": ["a"] * len(names)})
    pyarrow.parquet.write_table(rows, place / "a.parquet")
    # Whatever folder the user stands in.
    monkeypatch.chdir("/")
    source = open_images(place / "a.parquet")
    assert [source[i].data for i in (0, 1)] == [picture(10)] * 2
    for i, words in ((2, "outside"), (3, "outside"), (4, "a link out")):
        with pytest.raises(
            ValueError, match=f"row {i} names the image .*: it is {words} of .*set: "
        ):
            source[i]


@pytest.mark.parametrize("content", [b"", b"PAR1 not a table PAR1"])
def test_a_damaged_table_is_an_error_in_a_sentence_that_names_it(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet, split train cannot be read as a table") as e:
        open_images(tmp_path / "a.parquet")
    assert "\n" not in str(e.value)


def test_a_name_that_the_hub_does_not_give_is_not_found():
    with pytest.raises(FileNotFoundError, match="nobody/nothing, split train cannot be read"):
        open_images("nobody/nothing")


def test_a_stream_keeps_the_records_that_are_asked_for_and_fetches_them_once(tmp_path, monkeypatch):
    table().to_parquet(tmp_path / "a.parquet")
    loaded, load = [], datasets.load_dataset

    def from_the_hub(path, name, split, streaming=False):
        loaded.append((path, name, split, streaming))
        files = {"train": str(tmp_path / "a.parquet")}
        return load("parquet", data_files=files, split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    for _ in range(2):
        source = open_images("owner/name", subset="small", stream=tmp_path / "kept.arrow", limit=2)
        assert contents(source) == EXPECTED[:2]
    assert loaded == [("owner/name", "small", "train", True)]
    assert contents(open_table("owner/name")) == EXPECTED
    with pytest.raises(ValueError, match=r"a\.parquet is here: streams come from the hub"):
        open_images(tmp_path / "a.parquet", stream=tmp_path / "other.arrow")


def test_a_stream_of_pairs_keeps_both_images_and_their_preferences(tmp_path, monkeypatch):
    pairs().to_parquet(tmp_path / "a.parquet")
    load = datasets.load_dataset

    def from_the_hub(path, name, split, streaming):
        files = {"train": str(tmp_path / "a.parquet")}
        return load("parquet", data_files=files, split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    for _ in range(2):
        source = open_images("owner/name", stream=tmp_path / "kept.arrow", limit=2, **NAMED)
        assert contents(source) == EXPECTED[:2]
        assert compared(source) == [(10, 11, 1), (20, 21, -1)]


def test_a_stray_table_does_not_hide_pictures_with_their_texts(tmp_path, caplog):
    for name in ("a.png", "a.txt"):
        (tmp_path / name).write_bytes(picture(10) if name == "a.png" else b"ten")
    (tmp_path / "cache").mkdir()
    table().to_parquet(tmp_path / "cache/stray.parquet")
    assert contents(open_images(tmp_path, tell_unread=True)) == [("a", 10, "ten")]
    assert "also holds what is not read: 1 table, such as cache/s" in caplog.text
    (tmp_path / "a.txt").rename(tmp_path / "readme.txt")
    assert contents(open_images(tmp_path, tell_unread=True)) == EXPECTED
    assert "also holds what is not read: 1 picture, such as a.png" in caplog.text


def test_a_table_that_pictures_outnumber_is_to_be_named(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(10))
    table().to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"more files of another kind .*imagefolder.*/\*\.parquet$"):
        open_images(tmp_path)
    assert contents(open_images(tmp_path / "*.parquet")) == EXPECTED


def test_tables_of_two_kinds_in_a_folder_are_refused(tmp_path):
    table().to_parquet(tmp_path / "x.parquet")
    (tmp_path / "y.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 1 \.arrow and 1 \.parquet files.*/\*\.parquet$"):
        open_images(tmp_path)


def test_a_failing_stream_lets_the_other_processes_follow(tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(image_tables, "barrier", met.append)
    with pytest.raises(FileNotFoundError, match="cannot be read as a table of images"):
        open_table("nobody/nothing", stream=tmp_path / "kept.arrow")
    assert met == ["streamed"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_metadata_may_be_a_table(tmp_path, kind):
    folder(tmp_path, [], {"b.png": picture(2), "a/1.png": picture(1)})
    (tmp_path / "metadata.jsonl").unlink()
    if kind == "csv":
        (tmp_path / "metadata.csv").write_text('file_name,text\nb.png,"two, or so"\na/1.png,one\n')
    else:
        rows = {"file_name": ["b.png", "a/1.png"], "text": ["two, or so", "one"]}
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    source = open_images(tmp_path)
    assert isinstance(source, ImageFolder)
    assert contents(source) == [("a/1.png", 1, "one"), ("b.png", 2, "two, or so")]
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=f"has metadata.jsonl and metadata.{kind}: keep one"):
        open_images(tmp_path)


def test_a_damaged_table_of_metadata_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png\n")
    with pytest.raises(ValueError, match=r"metadata\.csv, line 2 has 1 fields"):
        open_images(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": "a.png", "text": "one"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for data in (b"none", whole.replace(b"file_name", b"file\xffname")):
        (tmp_path / "metadata.parquet").write_bytes(data)
        with pytest.raises(ValueError, match=r"metadata\.parquet cannot be read as a parquet file"):
            open_images(tmp_path)


def test_a_table_is_one_in_whatever_letters_its_end_is(tmp_path):
    columns = {"image": [picture(1)], "text": ["one"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "0.PARQUET")
    expected = [("0", 1, "one")]
    assert contents(open_images(tmp_path / "0.PARQUET")) == expected
    # Of a folder the library would see none, or those alone whose end is in small letters.
    words = r"0\.PARQUET is a table whose suffix is not .*/\*\.PARQUET"
    with pytest.raises(ValueError, match=words):
        open_images(tmp_path)
    assert contents(open_images(tmp_path / "*.PARQUET")) == expected


@pytest.mark.parametrize(
    "kind", [pyarrow.large_binary(), pyarrow.binary_view(), pyarrow.binary(len(picture(1)))]
)
def test_images_are_bytes_of_whatever_type(tmp_path, kind):
    columns = {"image": pyarrow.array([picture(1)], kind), "text": ["one"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "0.parquet")
    assert contents(open_images(tmp_path / "0.parquet")) == [("0", 1, "one")]


def test_a_date_that_python_has_not_is_an_error_that_names_the_file(tmp_path):
    columns = {
        "file_name": ["a.png"], "text": ["one"], "taken": pyarrow.array([10**8], pyarrow.date32())
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata\.parquet cannot be read .*\(date value out"):
        open_images(tmp_path)


def test_an_image_of_a_name_that_no_file_has_is_an_error_of_its_record_alone(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": "a\0b"}, {"bytes": picture(1)}], "text": ["a", "b"]}
    )
    source = ImageTable(rows.cast_column("image", datasets.Image()), "here", roots=[tmp_path])
    with pytest.raises(ValueError, match="row 0 names the image .* cannot be read: embedded null"):
        source[0]
    assert source[1].prompt == "b"


def test_a_prompt_that_json_does_not_know_is_named():
    rows = datasets.Dataset.from_dict({"image": [picture(1)], "text": [b"abc"]})
    with pytest.raises(ValueError, match=r"row 0 holds .*abc.* as its prompt: write a string"):
        ImageTable(rows, "here", image="image")[0]


def test_a_row_that_points_out_of_its_file_is_an_error_and_not_a_crash(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    data = file.read_bytes()
    # The places at which the texts begin and end.
    whole = np.cumsum([0, 3, 8, 6]).astype("<i4").tobytes()
    assert data.count(whole) == 1
    file.write_bytes(data.replace(whole, np.array([0, -(2**30), 11, 17], "<i4").tobytes()))
    source = open_images(tmp_path / "saved")
    with pytest.raises(ValueError, match="row 0 is damaged"):
        source[0]
    assert source[2].prompt == "thirty"


@pytest.mark.parametrize("caption", [None, "", 5, ["a", "b"], {"en": "a"}])
def test_a_caption_that_is_none_is_an_error_of_its_record_alone(tmp_path, caption):
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": caption}]
    source = open_images(folder(tmp_path, lines, {"a.png": picture(1), "b.png": picture(2)}))
    assert source[0].prompt == "one"
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 (is empty|holds)"):
        source[1]


def test_a_text_beside_each_image_is_its_prompt(tmp_path, caplog):
    files = {
        "b/v1.5_cat.PNG": picture(3), "b/v1.5_cat.txt": b" a cat\n", "a.png": picture(1),
        "a.json": json.dumps({"text": "one"}).encode(), "readme.txt": b"none", "c.png": picture(2),
        ".hidden.png": b"",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    source = open_images(tmp_path, tell_unread=True)
    assert isinstance(source, CaptionedFolder)
    assert list(source.keys) == ["a", "b/v1.5_cat", "c"]
    assert [source[0].prompt, source[1].prompt] == ["one", "a cat"]
    with pytest.raises(ValueError, match="c has no txt or json"):
        source[2]
    assert "1 texts have no image beside them, such as readme" in caplog.text


def test_texts_are_found_under_the_names_that_other_programs_give_them(tmp_path, caplog):
    names = {
        "a.png": "a.caption", "b.jpg": "b.jpg.txt", "v1.5_c.png": "v1.5_c.png.txt",
        "d.jfif": "d.txt", "e.png": "e.txt",
    }  # fmt: skip
    for image, text in names.items():
        (tmp_path / image).write_bytes(picture(1))
        (tmp_path / text).write_text(f"of {image}")
    # Of several texts one is read.
    (tmp_path / "e.caption").write_text("another")
    (tmp_path / "e.png.txt").write_text("another")
    source = open_images(tmp_path, tell_unread=True)
    found = {source.keys[i]: source[i].prompt for i in range(len(source))}
    assert found == {image.rpartition(".")[0]: f"of {image}" for image in names}
    assert "not read: 1 file with an image or text, such as e.png.txt" in caplog.text


def test_names_with_dots_lose_no_record_and_make_none_of_masks(tmp_path, caplog):
    names = ("v1.5_a", "v1.5_b", "plain")
    members = [(f"{name}.{suffix}", data) for name in names
               for suffix, data in (("png", picture(1)), ("txt", name))]  # fmt: skip
    members += [("plain.mask.png", picture(9)), ("v2.0.png", picture(2))]
    source = open_images(tar(tmp_path / "0.tar", members), tell_unread=True)
    assert isinstance(source, ImageTars)
    assert list(source.keys) == ["0/plain", "0/v1.5_a", "0/v1.5_b", "0/v2.0"]
    assert [source[i].prompt for i in range(3)] == ["plain", "v1.5_a", "v1.5_b"]
    with pytest.raises(ValueError, match=r"0/v2\.0 has no txt or json"):
        source[3]
    assert "not read: 1 file with an image or text, such as 0/plain.mask.png" in caplog.text


def test_a_text_alone_hides_no_record(tmp_path):
    (tmp_path / "v1.txt").write_text("of all")
    (tmp_path / "v1.5_cat.png").write_bytes(picture(1))
    (tmp_path / "v1.5_cat.txt").write_text("a cat")
    source = open_images(tmp_path)
    assert list(source.keys) == ["v1.5_cat"] and source[0].prompt == "a cat"


def test_records_that_the_name_of_another_hides_are_counted(tmp_path, caplog):
    for name in ("v1", "v1.5_cat"):
        (tmp_path / f"{name}.png").write_bytes(picture(1))
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(open_images(tmp_path, tell_unread=True).keys) == ["v1"]
    assert "not read: 2 files with an image or text, such as v1.5_cat." in caplog.text


def test_tables_hold_images_of_any_format(tmp_path):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(file, "WEBP", lossless=True)
    rows = table(image=[{"bytes": file.getvalue(), "path": None}] * 3)
    rows.to_parquet(tmp_path / "a.parquet")
    assert contents(open_images(tmp_path / "a.parquet"))[0] == ("0", 255, "ten")

"""GenEval's file of prompts, and its folders."""

import json

import pytest

from ladd_jax.evaluation.geneval import picture_file, read_geneval, write_records

RECORDS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "röd"},
]


def test_each_prompt_has_a_folder_with_its_record(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    records = read_geneval(file)
    assert records == RECORDS
    out = tmp_path / "out"
    write_records(out, records)
    write_records(out, records)
    assert sorted(place.name for place in out.iterdir()) == ["00000", "00001"]
    # As the scorer reads it.
    with (out / "00001" / "metadata.jsonl").open() as stream:
        assert json.load(stream) == RECORDS[1]
    assert (out / picture_file(1, 12)).parent.is_dir()
    assert str(picture_file(1, 12)) == "00001/samples/0012.png"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a cat"}\n', "line 1 has no field 'tag'"),
        ('{"tag": "a", "prompt": ""}\n', "line 1 is empty"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    file = tmp_path / "file.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_geneval(file)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match="name another --out"):
        write_records(tmp_path / "out", RECORDS)

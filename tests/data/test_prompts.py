"""Prompts from files: what is read, and what is refused where."""

import csv
import json
import os
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.data.prompts import read_prompts

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), min_size=1, max_size=40
)


def is_prompt(text):
    """Whether a text is of one line and has a character to see."""
    return "\n" not in text and any(unicodedata.category(c)[0] not in "CZ" for c in text)


prompt_lists = st.lists(texts.map(str.strip).filter(is_prompt), min_size=1, max_size=5)


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


@given(prompts=prompt_lists, end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_lines_give_their_prompts_back(folder, prompts, end, last):
    path = written(folder, "p.txt", end.join(prompts) + end * last)
    assert read_prompts(path) == prompts


@given(
    prompts=prompt_lists,
    suffix=st.sampled_from(["csv", "tsv"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_tables_give_their_prompts_back(folder, prompts, suffix, quoting):
    if suffix == "tsv":
        prompts = [" ".join(prompt.split("\t")) for prompt in prompts]
    path = folder / f"p.{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        # A quote in a field needs quotes, which the writer sees to.
        dialect = "excel" if suffix == "csv" else "excel-tab"
        writer = csv.writer(file, dialect, quoting=quoting)
        writer.writerows([["id", "text"], *([str(i), p] for i, p in enumerate(prompts))])
    assert read_prompts(path) == read_prompts(path, "text") == prompts


@pytest.mark.parametrize(
    "prompt",
    ['"Hello" said the cat', 'a 12" record', '"never closed', 'closed"', '"a cat"', '"',
     'the words "Fly an airplane" on a wall', '""a"'],
)  # fmt: skip
def test_quotes_of_a_tsv_are_those_of_the_prompt_and_merge_no_rows(tmp_path, prompt):
    path = written(tmp_path, "p.tsv", f"id\tprompt\n1\t{prompt}\n2\t{prompt}\n")
    assert read_prompts(path) == [prompt] * 2


@given(prompts=prompt_lists, escaped=st.booleans())
def test_json_lines_give_their_prompts_back(folder, prompts, escaped):
    rows = [json.dumps({"caption": p, "n": 1}, ensure_ascii=escaped) for p in prompts]
    path = written(folder, "p.jsonl", "\n".join(rows))
    assert read_prompts(path) == read_prompts(path, "caption") == prompts


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.txt", "a cat\r\na dög\r\n"),
        ("p.TXT", "  a cat \n\ta dög"),
        ("p.csv", "prompt\r\na cat\r\na dög\r\n"),
        ("p.tsv", "n\tprompt\r\n1\ta cat\r\n2\ta dög\r\n"),
        ("p.jsonl", '{"prompt": "a cat"}\r\n{"prompt": "a dög"}\r\n'),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["bare", "byte_order_mark"])
def test_line_ends_and_byte_order_marks_are_no_part_of_prompts(tmp_path, name, content, mark):
    assert read_prompts(written(tmp_path, name, mark + content.encode())) == ["a cat", "a dög"]


def test_other_separators_stay_within_a_prompt(tmp_path):
    assert read_prompts(written(tmp_path, "p.txt", "a\u2028b\x0cc\x85d\n")) == [
        "a\u2028b\x0cc\x85d"
    ]


def test_a_quoted_field_may_hold_delimiters_quotes_and_line_ends(tmp_path):
    path = written(tmp_path, "p.csv", 'id,prompt\n1,"a ""cat"",\na dog"\n2,a bird\n')
    assert read_prompts(path) == ['a "cat",\na dog', "a bird"]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
LONG = "x" * 10_001


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", "a\n\nb\n", "p.txt, line 2 is empty: write a prompt or remove it"),
        ("p.txt", "a\n \t\r\n", "line 2 is empty"),
        ("p.txt", "a\n\x1a", r"line 2 holds only invisible characters \('\\x1a'\): write a prompt"),
        ("p.txt", "\u200b \u200e\n", "line 1 holds only invisible characters"),
        ("p.txt", "a\n\ufeff\n", "line 2 is empty"),
        ("p.txt", "a\n" + LONG, "line 2 has a prompt of 10001 characters and the limit is 10000"),
        ("p.txt", "", "p.txt holds no prompts: write at least one"),
        ("p.txt", b"a\nb\xff\n", "line 2 is not UTF-8: save the file as UTF-8"),
        ("p.txt", "a\n".encode("utf-16"), "line 1 is not UTF-8"),
        # Without its mark UTF-16 is UTF-8, too.
        ("p.txt", "a\n".encode("utf-16-le"), "line 1 holds zero bytes, as UTF-16 does: save"),
        ("p.txt", LFS, r"p.txt is a pointer of git-lfs, and not the file: run `git lfs pull`"),
        ("p.csv", LFS, "p.csv is a pointer of git-lfs"),
        ("p.txt", "a\rb\r", "line 1 holds carriage returns, which would make one line of several"),
        ("p.csv", "", "holds no prompts"),
        ("p.csv", "prompt\n", "holds no prompts"),
        ("p.csv", "prompt\na\n\nb\n", "p.csv, line 3 is empty: write a row or remove it"),
        ("p.csv", "id,prompt\n1,\n", "line 2 is empty"),
        ("p.csv", "id,prompt\n1\n", "line 2 has 1 fields and the first row names 2 columns"),
        ("p.csv", "prompt\na cat, a dog\n", "line 2 has 2 fields and the first row names 1"),
        ("p.csv", f"prompt\n{LONG}\n", "line 2 has a prompt of 10001 characters"),
        ("p.csv", 'id,prompt\n1,"a\nb"\n2,"c\nd\n', "line 4 has a quoted field that is not valid"),
        ("p.csv", 'prompt\n"a" b\n', "line 2 has a quoted field that is not valid"),
        ("p.tsv", 'id\tprompt\n1\t"a\tb"\n', "line 2 has 3 fields and .* leave tabs out of fields"),
        ("p.tsv", "prompt\na\n\nb\n", "line 3 is empty: write a row or remove it"),
        ("p.tsv", 'id\tprompt\n1\t""\n', "line 2 is empty"),
        ("p.tsv", 'prompt\n"a cat\non a mat"\n', "line 2 opens a quote .* leave line ends out"),
        ("p.tsv", "id\tPrompt\n1\ta\n", "has none of prompt, text, caption: .* of id, Prompt"),
        ("p.tsv", "text\tprompt\na\tb\n", "has prompt and text: .* of text, prompt"),
        ("p.tsv", "prompt\tprompt\na\tb\n", "has 2 columns 'prompt'"),
        ("p.jsonl", "", "holds no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n\n', "line 2 is empty: write a record or remove it"),
        ("p.jsonl", '["a"]\n', "line 1 is not a JSON object"),
        ("p.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"x": 1}\n', "line 2 has no column 'prompt': .* are x"),
        ("p.jsonl", '{"a": "b", "c": "d"}\n', "line 1 has none of prompt, text, caption"),
        ("p.jsonl", '{"text": "a", "caption": "b"}\n', "line 1 has text and caption"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', "line 2 holds null as its prompt"),
        ("p.jsonl", '{"prompt": ""}\n', "line 1 is empty"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "prompt": "b"}\n',
            "p.jsonl, line 2 has the field 'prompt' twice: keep one",
        ),
        ("p.jsonl", '{"prompt": "a \\ud800"}\n', "line 1 has a prompt with half a surrogate pair"),
        ("p.parquet", "PAR1", "is not a .txt, .tsv, .csv or .jsonl file"),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_byte_order_marks_of_files_that_were_joined_are_no_part_of_a_prompt(tmp_path):
    joined = "\ufeffa cat\n\ufeff a dog\n\u2764\ufe0f\n"
    assert read_prompts(written(tmp_path, "p.txt", joined)) == ["a cat", "a dog", "\u2764\ufe0f"]


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_a_column_that_is_not_there_is_an_error_with_those_that_are(tmp_path, name):
    table = name.endswith("csv")
    content = "prompt,note\na,b\n" if table else '{"prompt": "a", "note": "b"}'
    path = written(tmp_path, name, content)
    assert read_prompts(path, "note") == ["b"]
    with pytest.raises(ValueError, match="has no column 'nota': its columns are prompt, note"):
        read_prompts(path, "nota")


def test_a_folder_with_the_name_of_a_file_is_told_to_be_one(tmp_path):
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no file .*p\.txt, which is a folder: name a file"
    ):
        read_prompts(tmp_path / "p.txt")


def test_a_column_of_a_text_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="without columns, and column 'prompt' was named"):
        read_prompts(written(tmp_path, "p.txt", "a"), "prompt")


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", f"folder{os.sep}p.txt"])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(f"no file {tmp_path / name}")):
        read_prompts(tmp_path / name)


def test_a_file_of_nearly_the_same_name_is_named(tmp_path):
    meant = written(tmp_path, "prompts.txt", "a")
    with pytest.raises(FileNotFoundError, match=re.escape(f", and {meant} is there")):
        read_prompts(tmp_path / "promts.txt")


def test_a_pattern_and_a_list_are_several_files_in_order(tmp_path):
    one, two = written(tmp_path, "1.txt", "a\nb\n"), written(tmp_path, "2.jsonl", '{"text": "c"}')
    assert read_prompts(tmp_path / "*") == ["a", "b", "c"]
    assert read_prompts(f"{two},{one}") == ["c", "a", "b"]
    comma = written(tmp_path, "with,comma.txt", "d")
    assert read_prompts(comma) == ["d"]


def test_a_column_that_is_nearly_there_is_named(tmp_path):
    path = written(tmp_path, "p.csv", "title,note\na,b\n")
    with pytest.raises(ValueError, match="no column 'titel': .*did you mean 'title'"):
        read_prompts(path, "titel")


def test_the_longest_prompt_is_read(tmp_path):
    assert read_prompts(written(tmp_path, "p.txt", LONG[1:])) == [LONG[1:]]

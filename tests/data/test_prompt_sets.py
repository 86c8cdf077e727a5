"""Prompts of published sets, in files of their authors' form."""

import json

import pytest

from configs import sd3_turbo
from ladd_jax.data.prompt_sets import names_prompts, read_prompt_set

HEAD = "Prompt\tCategory\tChallenge\tNote\n"


def parti(folder, rows):
    path = folder / "PartiPrompts.tsv"
    path.write_text(HEAD + "".join(f"{p}\tAnimals\t{c}\t\n" for p, c in rows))
    return path


def test_a_file_without_a_set_is_read_as_any_other(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a cat\na dog\n")
    assert read_prompt_set(path) == read_prompt_set(str(path)) == ["a cat", "a dog"]
    odd = tmp_path / "parti:p.txt"
    odd.write_text("a bird\n")
    assert read_prompt_set(odd) == ["a bird"]


def test_quotes_are_part_of_partis_prompts(tmp_path):
    words = '"G I G G L E" painted as graffiti'
    path = parti(tmp_path, [(words, "Basic"), ('the word "A', "Complex")])
    assert read_prompt_set(f"parti:{path}") == [words, 'the word "A']


def test_the_papers_choice_skips_basic_prompts_and_takes_every_fourth_of_the_others(tmp_path):
    rows = [(f"prompt {i}", "Basic" if i % 3 == 0 else "Complex") for i in range(1632)]
    chosen = read_prompt_set(f"parti128:{parti(tmp_path, rows)}")
    assert len(chosen) == 128
    assert chosen[:3] == ["prompt 1", "prompt 7", "prompt 13"]


def test_drawbench_is_read_from_its_column(tmp_path):
    path = tmp_path / "drawbench.csv"
    path.write_text('Prompts,Category\nA red car.,Colors\n"A cat, a dog.",Counting\n')
    assert read_prompt_set(f"drawbench:{path}") == ["A red car.", "A cat, a dog."]


def coco(folder, annotations):
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": annotations}))
    return path


def test_each_image_of_coco_has_its_first_caption(tmp_path):
    rows = [(7, 31, "a dog "), (3, 12, "two cats"), (7, 30, "the dog"), (3, 40, "cats")]
    annotations = [{"image_id": i, "id": n, "caption": c} for i, n, c in rows]
    assert read_prompt_set(f"coco:{coco(tmp_path, annotations)}") == ["two cats", "the dog"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("parti", "prompt\ta\n", "columns prompt, a, and PartiPrompts has Prompt"),
        ("parti", HEAD + "a cat\tAnimals\n", "line 2 has 2 fields and not 4"),
        ("parti", HEAD, "holds no prompts of parti"),
        ("parti", HEAD + "x" * 200_000 + "\n", "not PartiPrompts' table .field larger"),
        ("coco", "{", "holds no captions of COCO"),
        ("coco", '{"annotations": [{"id": 1, "image_id": Infinity}]}', "no captions of COCO"),
        ("coco", '{"annotations": [{"id": 1}]}', "no field 'image_id'"),
        ("coco", '{"annotations": []}', "holds no prompts of coco"),
        ("coco", '{"annotations": [], "annotations": []}', "it has 'annotations' twice"),
        ("coco", '{"annotations": [{"id": 1, "image_id": 2, "caption": 3}]}', "image 2 holds 3"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, words):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_prompt_set(f"{name}:{path}")


def test_a_set_knows_its_column_and_needs_its_file(tmp_path):
    with pytest.raises(ValueError, match="leave one of the two out"):
        read_prompt_set(f"parti:{tmp_path}", "Prompt")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_prompt_set(f"coco:{tmp_path / 'absent.json'}")


def test_prompts_are_told_from_pictures_by_the_path():
    for path in ("a.txt", "b/a.TSV", "a.jsonl", "coco:captions_val2014.json", "drawbench:a.csv"):
        assert names_prompts(path), path
    for path in ("pictures", "a.parquet", "data/*.tar", "owner/name", "captions_val2014.json"):
        assert not names_prompts(path), path
    assert sd3_turbo.get_config("data=coco:captions_val2014.json").data.source == "prompts"
    pictures = sd3_turbo.get_config("data=owner/name").data
    assert pictures.source == "images" and pictures.held_out == 0

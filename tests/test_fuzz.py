"""The flags of the fuzzer."""

import pytest

from benchmarks.fuzz import misuse
from benchmarks.fuzzing.readers import READERS


@pytest.mark.parametrize(
    ("readers", "number", "words"),
    [
        ([], 7, "--number=7 is an input of one reader and --reader names 0: name one, "),
        (["tars", "prompts"], 7, "--reader names 2: name one, "),
        (["nobody"], None, "--reader=nobody is not one of "),
        (["tars"], -1, "--number=-1 is below 0: use 0 "),
    ],
)
def test_flags_that_name_no_input_are_refused(readers, number, words):
    assert words in misuse(readers, number)


def test_all_readers_or_one_input_of_one_are_tried():
    assert not misuse([], None) and not misuse(list(READERS), None) and not misuse(["tars"], 0)

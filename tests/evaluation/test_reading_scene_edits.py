"""Reading edits of scenes: what the true picture shows is right, and what others show is not."""

import numpy as np
import pytest

from ladd_jax.data import digits, scene_edits
from ladd_jax.data.scene_edits import MOVE, RECOLOUR, REMOVE, edited, instruction, render
from ladd_jax.data.scenes import BUCKETS, SQUARE
from ladd_jax.errors import UserError
from ladd_jax.evaluation.extractors.base import EditExtractor
from ladd_jax.evaluation.extractors.scene_edits import SceneEdits
from ladd_jax.evaluation.scene_edits import agreement
from ladd_jax.evaluation.scenes import Reader, train_reader


@pytest.fixture(scope="module")
def test_scans() -> digits.Digits:
    return digits.load()[1]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return train_reader(digits.load()[0], seed=0, epochs=12)


def shares(found):
    return {name: round(float(np.mean(values)), 3) for name, values in found.items()}


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda b: b.name)
def test_true_edits_agree_and_sources_do_not(reader, test_scans, bucket):
    after, before, texts = scene_edits.compose(test_scans, bucket, 200, seed=1)
    right = shares(agreement(reader, after, texts, before))
    assert right["all"] >= 0.95
    still = shares(agreement(reader, before, texts, before))
    # Where the classifier finds no such digit, another scan may be as is asked for already.
    assert still["unchanged"] >= 0.95 and still["followed"] <= 0.01


def test_an_edit_of_another_scan_is_neither_followed_nor_without_change(reader, test_scans):
    drawn = [
        (picture, edit)
        for picture, edit in scene_edits.draw_edits(test_scans, SQUARE, 300, seed=2)
        if len(picture.scans) > 1
    ]
    wrong = []
    for picture, edit in drawn:
        meant = next(scan for scan in picture.scans if scan.fits(edit.item))
        rest = tuple(scan for scan in picture.scans if scan is not meant)
        # As if the words had meant the next one, which is gone.
        wrong.append(scene_edits.Picture(picture.shade, (meant, *rest[1:])))
    before = render(test_scans, SQUARE, [picture for picture, _ in drawn])
    images = render(test_scans, SQUARE, wrong)
    found = agreement(reader, images, [instruction(edit) for _, edit in drawn], before)
    assert shares(found)["followed"] <= 0.02 and shares(found)["unchanged"] <= 0.02


@pytest.mark.parametrize("kind", [RECOLOUR, MOVE, REMOVE])
def test_a_further_change_is_seen(reader, test_scans, kind):
    drawn = [
        (picture, edit)
        for picture, edit in scene_edits.draw_edits(test_scans, SQUARE, 200, seed=3)
        if edit.kind == kind
    ]
    before = render(test_scans, SQUARE, [picture for picture, _ in drawn])
    after = render(test_scans, SQUARE, [edited(picture, edit) for picture, edit in drawn])
    texts = [instruction(edit) for _, edit in drawn]
    found = agreement(reader, np.clip(after + 0.5, -1, 1), texts, before)
    assert shares(found)["unchanged"] == 0


def test_pictures_without_a_source_each_are_an_error(reader, test_scans):
    after, before, texts = scene_edits.compose(test_scans, SQUARE, 3, seed=0)
    with pytest.raises(UserError, match="3 pictures, 3 instructions and 2 sources: give one"):
        agreement(reader, after, texts, before[:2])


def test_the_extractor_reads_edits_and_tells_nothing_without_their_sources(reader, test_scans):
    after, before, texts = scene_edits.compose(test_scans, SQUARE, 20, seed=0)
    extractor = SceneEdits(reader)
    assert isinstance(extractor, EditExtractor)
    features, alignment = extractor.look_at_edits(after, texts, before)
    assert len(features) == len(alignment) == 20 and alignment.mean() > 0.8
    assert extractor.look(after, texts)[1] is None

"""Prompts to arrays."""

import numpy as np
import pytest

from ladd_jax.models.random_text import ByteTokenizer, TextEncoder, WordTokenizer


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.random(seed=0, length=17, width=32, layers=2, heads=2, pooled_width=32)


def test_tokens_are_bytes_then_the_end():
    ids = ByteTokenizer(6)(["hé", ""])
    assert ids.tolist() == [[104, 195, 169, 256, 256, 256], [256] * 6]


def test_tokens_may_be_words_in_any_case_then_the_end():
    tokenizer = WordTokenizer(5)
    ids = tokenizer(["A red seven", "a blue seven", "a red, red seven"])
    assert ids.shape == (3, 5) and (ids[:2, 3:] == 0).all() and ids[2, 4] == 0
    assert ids[0, 0] == ids[1, 0] and ids[0, 2] == ids[1, 2] and ids[0, 1] != ids[1, 1]
    assert (ids < tokenizer.vocab_size).all() and tokenizer.truncated == 1


def test_words_are_told_apart_in_writing_without_spaces_too():
    tokenizer = WordTokenizer(8)
    red, blue = tokenizer(["红色的七", "蓝色的七"])
    assert (red != 0).sum() == 4 and (red != blue).sum() == 1
    assert (tokenizer(["ねこ cat_1 고양이"])[0] != 0).sum() == 4


def test_about_115_of_1000_words_share_their_token():
    ids = WordTokenizer(1001)([" ".join(f"w{i}" for i in range(1000))])[0, :1000]
    _, counts = np.unique(ids, return_counts=True)
    assert 85 < counts[counts > 1].sum() < 145


def test_the_digits_are_read_by_the_same_vectors_as_ever():
    digits = TextEncoder.random(
        seed=0, length=17, width=128, layers=2, heads=4, pooled_width=256, tokens="bytes"
    )
    found = digits.encode(["three and seven"])
    np.testing.assert_allclose(found["context"][0, 0, :3], [-0.600106, 0.388078, 0.816343], 1e-4)
    np.testing.assert_allclose(found["pooled"][0, :3], [0.339554, 0.589287, 0.602784], 1e-4)


def test_embeddings_of_words_are_as_large_as_those_of_bytes():
    spread = {
        tokens: TextEncoder.random(
            seed=0, length=8, width=32, layers=1, heads=2, pooled_width=32, tokens=tokens
        )
        .encode(["one", "two three"])["context"]
        .std()
        for tokens in ("bytes", "words")
    }
    assert spread["words"] == pytest.approx(spread["bytes"], rel=0.3)


def test_a_prompt_that_does_not_fit_is_cut_before_the_end_and_counted(encoder):
    tokenizer = ByteTokenizer(6)
    assert tokenizer(["seventeen", "seven"]).tolist() == [[*b"seven", 256]] * 2
    assert tokenizer.truncated == 1
    before = encoder.truncated["data.text_length"]
    long, cut = encoder.encode(["a prompt of more than 16 bytes", "a prompt of more"])["pooled"]
    np.testing.assert_array_equal(long, cut)
    assert encoder.truncated["data.text_length"] == before + 1


def test_the_same_seed_encodes_the_same(encoder):
    again = TextEncoder.random(seed=0, length=17, width=32, layers=2, heads=2, pooled_width=32)
    other = TextEncoder.random(seed=1, length=17, width=32, layers=2, heads=2, pooled_width=32)
    context, pooled = encoder.encode(["seven"]).values()
    assert context.shape == (1, 17, 32) and pooled.shape == (1, 32)
    np.testing.assert_array_equal(again.encode(["seven"])["pooled"], pooled)
    assert np.abs(other.encode(["seven"])["pooled"] - pooled).max() > 0.1


def test_a_prompt_is_encoded_alike_in_every_batch(encoder):
    prompts = [f"p{i}" for i in range(300)]
    context, pooled = encoder.encode(prompts).values()
    last, first = encoder.encode(prompts[299:]), encoder.encode(prompts[:1])
    np.testing.assert_allclose(last["pooled"], pooled[299:], atol=1e-5)
    np.testing.assert_allclose(first["context"], context[:1], atol=1e-5)


def test_the_pooled_vector_reads_the_order_of_words(encoder):
    prompts = ["three over seven", "seven over three", "three and seven"]
    pooled = encoder.encode(prompts)["pooled"]
    spread = np.linalg.norm(pooled, axis=1).mean()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(pooled[i] - pooled[j]) > 0.1 * spread

"""Prompts to context and pooled vector, against the pipeline of diffusers."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import tiny
from jax.sharding import PartitionSpec

from ladd_jax.models.sd3.encoder_weights import load_text_encoders
from ladd_jax.models.sd3.text import PromptTokenizer
from ladd_jax.parallel.mesh import make_mesh

pytest.importorskip("torch")
pytest.importorskip("diffusers")

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
PROMPTS = ["a red cat over the seven", "", "A photo, of 'x' & Ünï in the   dark!", "cat " * 200]


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    return pipelines.save_pipeline(directory), directory


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    directory = tmp_path_factory.mktemp("without_t5")
    return pipelines.save_pipeline(directory, t5=False), directory


def wanted(pipeline, prompts, length):
    import torch

    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
    return context.numpy(), pooled.numpy()


@pytest.mark.parametrize(
    ("parts", "length"), [("with_t5", 77), ("with_t5", 256), ("without_t5", 9)]
)
def test_it_is_encode_prompt(parts, length, request):
    pipeline, directory = request.getfixturevalue(parts)
    encoder = load_text_encoders(directory, jnp.float32, t5_length=length, batch=3)
    context, pooled = encoder.encode(PROMPTS).values()
    expected_context, expected_pooled = wanted(pipeline, PROMPTS, length)
    assert context.dtype == pooled.dtype == np.float32
    assert context.shape == expected_context.shape
    assert tiny.max_difference(context, expected_context) < 1e-5
    assert tiny.max_difference(pooled, expected_pooled) < 1e-5
    assert (encoder.length, encoder.context_width) == context.shape[1:]
    assert encoder.pooled_width == pooled.shape[1]
    (rows, columns), below = encoder.blocks["context"]
    assert below == (length, 0 if parts == "without_t5" else encoder.context_width)
    assert rows + length == encoder.length and context[:, :rows, columns - 1].any()
    assert not context[:, :rows, columns:].any() and context[:, rows:, : below[1]].any() == (
        parts == "with_t5"
    )


def test_tokenizers_need_no_torch(with_t5):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ladd_jax.models.sd3.text import PromptTokenizer\n"
        "for part in ('tokenizer', 'tokenizer_2', 'tokenizer_3'):\n"
        "    print(PromptTokenizer(f'{sys.argv[1]}/{part}', 9)(['a red cat', '']).tolist())\n"
    )
    command = [sys.executable, "-c", code, str(with_t5[1])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    tokenizers = [PromptTokenizer(with_t5[1] / part, 9) for part in TOKENIZERS]
    wanted = [tokenizer(["a red cat", ""]).tolist() for tokenizer in tokenizers]
    assert [json.loads(line) for line in result.stdout.splitlines()] == wanted


def test_prompts_that_were_cut_are_counted(with_t5):
    encoder = load_text_encoders(with_t5[1], jnp.float32, t5_length=200, batch=3)
    # 75 words and the start and end tokens fit CLIP; 199 tokens and the end token fit T5.
    encoder.encode(["cat " * 75, "cat " * 76, "cat"])
    assert encoder.truncated == {"clip_l": 1, "clip_g": 1, "t5": 0}
    encoder.encode(["cat " * 199, "cat " * 200])
    assert encoder.truncated == {"clip_l": 3, "clip_g": 3, "t5": 1}


def test_a_tokenizer_of_vocabulary_and_merges_is_the_same(with_t5, tmp_path):
    # The released pipelines hold these two files and no tokenizer.json.
    pipeline, directory = with_t5
    for part in directory.iterdir():
        (tmp_path / part.name).symlink_to(part)
    folder = tmp_path / "tokenizer_2"
    folder.unlink()
    folder.mkdir()
    backend = json.loads((directory / "tokenizer_2/tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((directory / "tokenizer_2/tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"backend": None}))
    encoder = load_text_encoders(tmp_path, jnp.float32, t5_length=77, batch=4)
    context, pooled = encoder.encode(PROMPTS).values()
    expected_context, expected_pooled = wanted(pipeline, PROMPTS, 77)
    assert tiny.max_difference(context, expected_context) < 1e-5
    assert tiny.max_difference(pooled, expected_pooled) < 1e-5


def test_a_mesh_holds_shards_and_encodes_the_same(with_t5):
    pipeline, directory = with_t5
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    encoder = load_text_encoders(directory, jnp.float32, mesh, t5_length=77, batch=4)
    kernel = encoder.params["t5"]["blocks"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", None, "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    for leaf in jax.tree.leaves(encoder.params):
        assert leaf.sharding.mesh == mesh
    context, pooled = encoder.encode(PROMPTS).values()
    expected_context, expected_pooled = wanted(pipeline, PROMPTS, 77)
    assert tiny.max_difference(context, expected_context) < 1e-5
    assert tiny.max_difference(pooled, expected_pooled) < 1e-5


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(with_t5):
    mesh = make_mesh({"fsdp": 8})
    with pytest.raises(ValueError, match="batch_size 12 is not divisible by 8"):
        load_text_encoders(with_t5[1], jnp.float32, mesh, batch=12)

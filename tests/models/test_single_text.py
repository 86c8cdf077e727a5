"""One text encoder of CLIP or T5 alone, against `transformers`."""

import json

import numpy as np
import pytest
import torch
import transformers
from pipelines import clip_tokenizer, randomize, t5_tokenizer

from configs import small
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import typed
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.stages.encode import text_encoder

PROMPTS = ["seven over the sea", "red", ""]
LENGTH = 20


def clip(directory):
    tokenizer = clip_tokenizer()
    model = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=8, projection_dim=6, num_hidden_layers=3,
            num_attention_heads=2, intermediate_size=16, max_position_embeddings=77,
            bos_token_id=0, pad_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    return save(directory, model, tokenizer)


def t5(directory):
    tokenizer = t5_tokenizer()
    model = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer), d_model=12, d_kv=6, d_ff=24, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    return save(directory, model, tokenizer)


def save(directory, model, tokenizer):
    torch.manual_seed(0)
    randomize(model).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    rows = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        result = model(rows["input_ids"], output_hidden_states=True)
    return result, rows["attention_mask"]


def encoded(directory, **changes):
    config = small.get_config(f"data=x,text={directory},text_length={LENGTH}")
    config.data.update(dict(text_batch_size=8) | changes)
    read_architectures(config)
    found = text_encoder(typed(config)).encode(PROMPTS)
    assert found["context"].shape == (3, LENGTH, config.data.text_width)
    assert found["pooled"].shape == (3, config.data.pooled_width)
    return found


def test_clip_gives_its_tokens_and_its_projected_vector(tmp_path):
    theirs, _ = clip(tmp_path)
    ours = encoded(tmp_path)
    np.testing.assert_allclose(ours["context"], theirs.hidden_states[-2], atol=1e-5)
    np.testing.assert_allclose(ours["pooled"], theirs.text_embeds, atol=1e-5)
    with pytest.raises(UserError, match="data.text_length is 80 and the CLIP .* reads 77 tokens"):
        encoded(tmp_path, text_length=80)


def test_a_whole_clip_gives_what_its_text_tower_gives(tmp_path):
    tokenizer = clip_tokenizer()
    towers = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=dict(
                vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2,
                **towers | {"num_attention_heads": 8},
            ),
            vision_config=dict(image_size=8, patch_size=4, **towers),
            projection_dim=6,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    randomize(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # As files on the hub, which leave out what is the default.
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("max_position_embeddings", "num_attention_heads", "hidden_act"):
        config["text_config"].pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        theirs = model.text_model(rows["input_ids"], output_hidden_states=True)
        pooled = model.text_projection(theirs.pooler_output)
    ours = encoded(tmp_path)
    np.testing.assert_allclose(ours["context"], theirs.hidden_states[-2], atol=1e-5)
    np.testing.assert_allclose(ours["pooled"], pooled, atol=1e-5)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"model_type": "clip_text_', "config.json is damaged .*: get it again"),
        ("[1]", r"config.json is damaged \(it holds no JSON object\)"),
        ('{"model_type": "clip_text_model", "hidden_size": 8}', "config.json has no 'vocab_size'"),
        ('{"model_type": "clip_text_model", "vocab_size": null}', "has no 'vocab_size'"),
        ('{"model_type": "clip", "text_config": 3}', "damaged .its text_config is no object"),
        ("", r"config.json is damaged \(it is empty\): get it again"),
        ('{"model_type": "t5", "feed_forward_proj": "gated-gelu"}', "has no 'vocab_size'"),
    ],
)
def test_a_damaged_config_is_one_sentence(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        encoded(tmp_path)


def test_t5_gives_its_tokens_and_their_mean_without_padding(tmp_path):
    _, mask = t5(tmp_path)
    ours = encoded(tmp_path)
    model = transformers.T5EncoderModel.from_pretrained(tmp_path)
    rows = t5_tokenizer()(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    # Padding is attended to, as Stable Diffusion 3 does.
    with torch.no_grad():
        states = model(rows["input_ids"], attention_mask=torch.ones_like(mask)).last_hidden_state
    np.testing.assert_allclose(ours["context"], states, atol=1e-5)
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.testing.assert_allclose(ours["pooled"], mean, atol=1e-5)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no config.json in"):
        encoded(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="a model of the type 'bert': give a folder of CLIP "):
        encoded(tmp_path)

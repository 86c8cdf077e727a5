"""CLIP as a judge, against the classes of `transformers` with random weights."""

import shutil

import jax
import numpy as np
import pipelines
import pytest
from PIL import Image

from ladd_jax.evaluation.extractors import Given, hpsv2, pickscore
from ladd_jax.evaluation.extractors import clip as clip_extractor
from ladd_jax.evaluation.extractors.batches import rgb_bytes
from ladd_jax.evaluation.extractors.clip import CLIPExtractor
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.weights.clip import load_clip, read_clip_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["a red cat", "seven", "a red cat", "the other cat " * 40]
SIDE = 24


def save(folder, *, activation="quick_gelu", eos=None):
    """A small CLIP with all that a repository of the hub has; returns its torch module."""
    tokenizer = pipelines.clip_tokenizer()
    torch.manual_seed(0)
    shared = dict(num_attention_heads=2, num_hidden_layers=2, hidden_act=activation)
    text = transformers.CLIPTextConfig(
        **shared, vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos, bos_token_id=0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        **shared, hidden_size=20, intermediate_size=28, image_size=SIDE, patch_size=8
    )
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12
    )
    model = pipelines.randomize(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor(folder)
    return model


def processor(folder):
    made = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    made.save_pretrained(folder)
    return made


def mesh():
    return make_mesh({"fsdp": -1}, jax.devices()[:2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return save(folder), folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1.1, 1.1, (4, 40, 61, 3)).astype(np.float32)


def reference(model, folder, images):
    """Unit vectors of pictures and prompts, of whole pictures read as from files."""
    from transformers import CLIPTokenizer

    pictures = [Image.fromarray(picture) for picture in rgb_bytes(images)]
    pixels = processor(folder)(pictures, return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    return pixels.permute(0, 2, 3, 1).numpy(), output.image_embeds, output.text_embeds


def test_features_and_scores_are_those_of_transformers(saved, images):
    model, folder = saved
    pixels, pictures, texts = reference(model, folder, images)
    extractor = CLIPExtractor(str(folder), mesh(), batch_size=2)
    np.testing.assert_allclose(extractor.pixels(images), pixels, atol=1e-5)
    features, alignment = extractor.look(images, PROMPTS)
    assert features.shape == (4, 1, 12) and features.dtype == np.float64
    np.testing.assert_allclose(features[:, 0], pictures, atol=1e-4)
    cosine = (pictures * texts).sum(-1).numpy()
    np.testing.assert_allclose(alignment, 100 * np.maximum(cosine, 0), atol=1e-3)
    # Pictures and prompts are told apart.
    assert np.ptp(cosine) > 0.01


@pytest.mark.parametrize(("module", "scaled"), [(pickscore, True), (hpsv2, False)])
def test_models_of_preference_have_their_own_scores(saved, images, module, scaled):
    model, folder = saved
    _, pictures, texts = reference(model, folder, images)
    given = Given(str(folder), training=dict, seed=0, mesh=mesh())
    _, alignment = module.open_extractor(given).look(images, PROMPTS)
    factor = model.logit_scale.exp().item() if scaled else 100
    wanted = factor * (pictures * texts).sum(-1).numpy()
    np.testing.assert_allclose(alignment, wanted, rtol=1e-4, atol=1e-3)


def test_a_model_without_processor_takes_that_of_another(saved, images, tmp_path):
    _, folder = saved
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json"):
        CLIPExtractor(str(tmp_path), mesh())
    pixels = CLIPExtractor(str(tmp_path), mesh(), processor=str(folder)).pixels(images)
    np.testing.assert_array_equal(pixels, CLIPExtractor(str(folder), mesh()).pixels(images))


def test_configs_that_name_little_have_the_defaults_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "clip", "projection_dim": 768, "vision_config": {"patch_size": 14},'
        ' "text_config": {"eos_token_id": 2, "hidden_act": "gelu"}}'
    )
    text, vision = read_clip_config(tmp_path)
    assert (text.hidden_size, text.num_hidden_layers, text.eos_token_id) == (512, 12, None)
    assert (vision.hidden_size, vision.patch_size, vision.image_size) == (768, 14, 224)
    assert (text.projection_dim, vision.projection_dim) == (768, 768)
    assert (text.hidden_act, vision.hidden_act) == ("gelu", "quick_gelu")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"model_type": "siglip"}', "of a 'siglip' model"),
        ("{", "is damaged"),
        ('{"model_type": "clip", "text_config": {"hidden_act": "relu"}}', "hidden_act 'relu'"),
    ],
)
def test_other_configs_are_refused(tmp_path, config, words):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=words):
        read_clip_config(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder of a model"):
        CLIPExtractor(str(tmp_path / "absent" / "folder"), mesh())
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json"):
        load_clip(tmp_path)


def test_alignment_of_clip_is_never_negative():
    cosine = np.array([-0.5, 0.0, 0.25])
    assert clip_extractor.clip_score(cosine, 100.0).tolist() == [0, 0, 25]

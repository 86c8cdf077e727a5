"""FID's Inception against torch-fidelity's, with random weights of the real class."""

import fidelity  # noqa: F401  # Before any part of torch-fidelity.
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3, interpolate_compat_tensorflow

from ladd_jax.evaluation.extractors.batches import rgb_bytes
from ladd_jax.evaluation.extractors.inception import InceptionExtractor
from ladd_jax.models.inception import inception, resize
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.weights.inception import load_inception


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's network, whose norms have statistics as after training."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # It would download its weights.
        patch.setattr(
            feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: None
        )
        kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("inception-v3-compat", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    return network


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
    """The weights as they are published, and as safetensors."""
    folder = tmp_path_factory.mktemp("inception")
    published, converted = folder / "weights.pth", folder / "weights.safetensors"
    torch.save(theirs.state_dict(), published)
    steps = "num_batches_tracked"
    kept = {n: t for n, t in theirs.state_dict().items() if not n.endswith(steps)}
    save_file(kept, converted)
    return published, converted


def relative(ours, wanted):
    return np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (299, 299), (512, 300), (2, 1)])
def test_pictures_are_resized_as_tensorflow_1_did(height, width):
    pictures = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.float32)
    wanted = interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
        torch.tensor(pictures).permute(0, 3, 1, 2), size=(299, 299), align_corners=False
    )
    ours = jax.jit(resize)(pictures)
    np.testing.assert_allclose(ours, wanted.permute(0, 2, 3, 1), atol=1e-4)


@pytest.mark.slow
def test_features_are_torch_fidelitys(theirs, files):
    # Beyond the range, and between its steps, as networks draw.
    images = np.random.default_rng(1).uniform(-1.2, 1.2, (2, 20, 40, 3)).astype(np.float32)
    bytes_ = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    (wanted,) = theirs(torch.tensor(bytes_).permute(0, 3, 1, 2))
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:1])
    extractor = InceptionExtractor(str(files[0]), mesh, batch_size=2)
    features, alignment = extractor.look(images, ["", ""])
    assert alignment is None
    assert features.shape == (2, 1, 2048) and features.dtype == np.float64
    assert relative(features[:, 0], wanted.numpy()) < 1e-4
    # Random networks make all pictures much alike: their differences are compared too.
    wanted = wanted.numpy()
    assert relative(features[:, 0] - features[:, 0].mean(0), wanted - wanted.mean(0)) < 1e-3


def test_grey_pictures_are_read_as_colours():
    grey = np.array([-1.0, 0.0, 1.0, np.nan], np.float32).reshape(1, 2, 2, 1)
    assert rgb_bytes(grey)[0, ..., 2].ravel().tolist() == [0, 128, 255, 128]
    assert rgb_bytes(grey).shape == (1, 2, 2, 3)


def test_both_kinds_of_file_hold_the_same_parameters(files):
    (_, pickled), (_, converted) = (load_inception(file) for file in files)
    jax.tree.map(np.testing.assert_array_equal, pickled, converted)


def test_other_files_are_refused(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*: give the weights of FID's"):
        load_inception(tmp_path / "absent.pth")
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match=r"does not have the tensor .* and 469 more"):
        load_inception(other)
    torch.save({"epoch": 3}, other)
    with pytest.raises(ValueError, match="more than tensors by name"):
        load_inception(other)
    other.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="not a PyTorch state dict"):
        load_inception(other)


def test_pictures_must_have_its_size():
    network = inception()
    with pytest.raises(ValueError, match=r"reads \[B, 299, 299, 3\]"):
        jax.eval_shape(network, network.shapes, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))

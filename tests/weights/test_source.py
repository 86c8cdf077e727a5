"""Where weights are found: folders, files, and a hub."""

import http.server
import json
import threading

import diffusers_mmdit as reference
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest

from ladd_jax.weights import load_autoencoder, load_text_encoders
from ladd_jax.weights.source import find

WEIGHTS = "diffusion_pytorch_model.safetensors"


def names(source, root):
    return [str(file.relative_to(root)) for file in source.files], source.config.relative_to(root)


def test_a_pipeline_and_its_transformer_are_the_same(tmp_path):
    reference.save(reference.transformer(depth=1), tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    assert find(tmp_path) == find(tmp_path / "transformer")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "neither transformer/config.json nor config.json"),
        (["unet/config.json", "model_index.json"], "U-Net"),
        (["pytorch_lora_weights.safetensors"], "LoRA"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA"),
        (["transformer/config.json"], "neither diffusion_pytorch_model.safetensors nor"),
        (["config.json", "diffusion_pytorch_model.bin"], "safetensors"),
        (
            ["config.json", "diffusion_pytorch_model.a.safetensors",
             "diffusion_pytorch_model.b.safetensors"],
            "variants a, b",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_folder_of_something_else_is_named(files, words, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        find(tmp_path)


def test_a_variant_that_is_not_there_is_named(tmp_path):
    folder = reference.save(reference.transformer(depth=1), tmp_path / "t")
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.fp16\.safetensors"):
        find(folder, "fp16")


@pytest.mark.parametrize("path", ["no/such/folder/here", "nothing", "/nothing/at-all.safetensors"])
def test_a_path_of_nothing_is_named(path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find(path)


def test_a_missing_shard_is_named(tmp_path):
    folder = tmp_path / "t"
    reference.save(reference.transformer(), folder, max_shard_size="10KB")
    shard = sorted(folder.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        find(folder)


def test_a_damaged_index_is_named(tmp_path):
    folder = tmp_path / "t"
    reference.save(reference.transformer(), folder, max_shard_size="10KB")
    paths = [json.dumps({"weight_map": {"a": name}}) for name in ("", "..", "x/../y", "a\0b")]
    for text in ("{", "[]", '{"weight_map": 3}', *paths):
        (folder / f"{WEIGHTS}.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json is not an index"):
            find(folder)


class Hub(http.server.ThreadingHTTPServer):
    """A hub with repositories under a folder, of which those named gated need a token."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.asked = root, []


class _Handler(http.server.BaseHTTPRequestHandler):
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            folder = self.server.root / repository
            if not folder.is_dir():
                return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            if rest[:1] == ["tree"]:
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                tree = [
                    {"type": "file", "path": str(file.relative_to(folder)), "oid": "0" * 40,
                     "size": file.stat().st_size}
                    for file in files
                ]  # fmt: skip
                return self.reply(200, json.dumps(tree).encode())
            about = {"id": repository, "sha": self.COMMIT, "siblings": []}
            return self.reply(200, json.dumps(about).encode())
        if parts[2:3] != ["resolve"]:
            return self.reply(404, b"")
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        self.server.asked.append(name)
        if "gated" in repository:
            return self.reply(401, b"", {"X-Error-Code": "GatedRepo"})
        body = (self.server.root / repository / name).read_bytes()
        self.reply(200, body, {"X-Repo-Commit": self.COMMIT, "ETag": f'"{hash(name)}"'})

    def reply(self, code, body, headers=None):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(tmp_path / "hub")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_only_the_transformer_is_fetched_from_the_hub(hub):
    repository = hub.root / "owner/model"
    theirs = reference.transformer(depth=1)
    reference.save(theirs, repository / "transformer")
    reference.save(theirs, repository / "transformer", variant="fp16")
    for name in ("vae/config.json", "text_encoder/model.safetensors", "sd3.safetensors"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")
    source = find("owner/model")
    assert [file.name for file in source.files] == [WEIGHTS]
    assert source.files[0].read_bytes() == (repository / "transformer" / WEIGHTS).read_bytes()
    assert set(hub.asked) == {"transformer/config.json", f"transformer/{WEIGHTS}"}
    hub.asked.clear()
    source = find("owner/model", "fp16")
    assert [file.name for file in source.files] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert f"transformer/{WEIGHTS}" not in hub.asked


def test_only_the_encoders_are_fetched_for_the_encoders(hub):
    repository = hub.root / "owner/pipeline"
    pipelines.save_pipeline(repository)
    encoder = load_text_encoders("owner/pipeline", jnp.float32, t5_length=9, batch=1)
    assert encoder.encode(["seven"])["context"].shape == (1, 77 + 9, 32)
    _, params = load_autoencoder("owner/pipeline")
    _, expected = load_autoencoder(repository)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert {"vae", "text_encoder_3", "tokenizer"} < {name.split("/")[0] for name in hub.asked}
    assert not any(name.startswith("transformer/") for name in hub.asked)


def test_a_gated_repository_says_how_to_get_access(hub):
    reference.save(reference.transformer(depth=1), hub.root / "owner/gated/transformer")
    with pytest.raises(FileNotFoundError) as raised:
        find("owner/gated")
    for words in ("owner/gated is gated", "licence", "huggingface.co/owner/gated", "hf auth login"):
        assert words in str(raised.value)


def test_a_repository_that_is_not_there_is_named(hub):
    (hub.root).mkdir()
    with pytest.raises(FileNotFoundError, match="neither a folder nor a public repository a/b"):
        find("a/b")


def test_a_hub_that_does_not_answer_is_named(hub, monkeypatch):
    # The hub's client tries five times again, and waits longer each time.
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(FileNotFoundError, match="there is no folder a/b"):
        find("a/b")

"""The page without a browser and without a network: `ladd_jax.serving.page`."""

import types

import jax
import pytest
from PIL import Image
from sampled import save_filling

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.ready import Ready
from ladd_jax.stages.trained import open_trained

gradio = pytest.importorskip("gradio", reason='needs gradio: the extra "serve"')


@pytest.fixture(scope="module")
def filling(tmp_path_factory):
    directory = save_filling(tmp_path_factory.mktemp("filling"))
    mesh = make_mesh({}, jax.devices()[:1])
    return open_trained(str(directory), None, None, None, mesh)


@pytest.fixture
def page(filling):
    """The page of a student that fills holes and is not compiled yet."""
    from ladd_jax.serving.page import Page

    student = types.SimpleNamespace(trained=filling, steps=len(filling.times))
    return Page(student, types.SimpleNamespace(largest=1, drop=lambda name: None), Ready())


def test_a_request_names_no_file_that_was_not_uploaded(page, tmp_path, monkeypatch):
    from fastapi.testclient import TestClient

    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    blocks = page.blocks()
    monkeypatch.setattr(page, "blocks", lambda: blocks)
    [number] = [i for i, each in blocks.fns.items() if each.name == "_canvas"]

    def canvas_over(client, path):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        asked = {"fn_index": number, "data": [file], "session_hash": "tab"}
        return client.post("/gradio_api/run/predict", json=asked)

    with TestClient(page.app(), raise_server_exceptions=False) as client:
        with (tmp_path / "picture.png").open("rb") as stream:
            [uploaded] = client.post("/gradio_api/upload", files={"files": stream}).json()
        taken = canvas_over(client, uploaded)
        assert taken.status_code == 200, taken.text
        assert taken.json()["data"][1] == "Paint over what is to be filled."
        refused = canvas_over(client, tmp_path / "picture.png")
        assert refused.status_code == 500

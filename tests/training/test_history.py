"""The history of a training is read as it was written, or the damaged line is named."""

import json

import pytest

from ladd_jax.errors import DamagedError
from ladd_jax.training.metrics import read_history

WHOLE = {"step": 1, "loss": 0.5, "logits": [0.5, float("nan")], "skipped": 0}


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"3", b'{"loss": 1}', b'{"step": "2"}', b'{"step": Infinity}', b"\xff",
        b'{"step": 2, "loss": "x"}', b'{"step": 2, "loss": null}', b'{"step": 2, "loss": [[1]]}',
        b'{"step": 2, "loss": []}', b"[" * 9000, b'{"step": 2, "loss": 1' + b"0" * 400 + b"}",
    ],
    ids=lambda line: line[:30].decode(errors="replace"),
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "history.jsonl"
    file.write_bytes(json.dumps(WHOLE).encode() + b"\n" + line + b"\n")
    with pytest.raises(DamagedError, match=r"history\.jsonl, line 2, is damaged .*remove the line"):
        read_history(tmp_path)
    file.write_bytes(json.dumps(WHOLE).encode() + b"\n")
    assert read_history(tmp_path)[0]["logits"][0] == 0.5

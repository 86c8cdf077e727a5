"""Writes the results of benchmarks to files."""

import json
from pathlib import Path
from typing import Any

from ladd_jax.whole_files import write_text_whole


def write_result(path: str | Path, result: Any) -> None:
    """Writes a result as JSON, whole or not at all, and makes its folder. No path: no file."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(Path(path), json.dumps(result, indent=2) + "\n")

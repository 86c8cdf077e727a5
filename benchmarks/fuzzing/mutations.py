"""Damage as files from elsewhere may have it: changes to a folder, one at a time, each described.

A change depends only on the given `random.Random` and on what the folder holds.
"""

import io
import json
import random
import re
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = (
    0, -1, 1, 2, 7, 255, 65536, 2**31, 2**32 - 1, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0,
    1e308, float("inf"), float("nan"),
)  # fmt: skip
_TEXTS = (
    "", " ", "x", "0", "null", "..", "/", "../../etc/passwd", "a" * 5000, "\0", "\ud800", "é\u202e",
    "\U0001f600", "line\nbreak", "\r", "%s{0}", "~nobody", "F8_E4M3", "F64", "I64", "bfloat16",
)  # fmt: skip
_NAMES = (
    " ", "a b", "-x", "ü.png", "\U0001f600.json", "a" * 250, "new\nline", "*.tar", "x.png.txt",
    ".hidden", "x.", "CON", "1x1", "10**9x4",
)  # fmt: skip
_BYTES = (
    b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b'"', b"\n", b"\r\n", b"\t", b",", b"{",
    b"[" * 9000, b"\x7f" * 8, b"\xff" * 8, b"\x80", b"\xed\xa0\x80", b"1e999", b"9" * 5000, b"-",
)  # fmt: skip
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 886\n"
_LARGEST = 2**22
"""Bytes of a file from which on no change makes it larger."""


def mutate(folder: Path, rng: random.Random) -> list[str]:
    """Changes a folder one to three times.

    Returns:
      What was changed, in words.
    """
    done: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if not files:
            break
        file = rng.choice(files)
        kinds: list[Callable[[Path, random.Random], str]] = [_of_bytes, _of_bytes, _of_files]
        kinds += _OF_FORMATS.get(file.suffix, [_of_text])
        name = file.relative_to(folder).as_posix()
        done.append(f"{name}: {rng.choice(kinds)(file, rng)}")
    return done


def _of_bytes(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    size = len(data)
    start = rng.randrange(size + 1)
    # Most of what readers look at first is at the beginning or at the end.
    start = rng.choice((start, start, min(start, rng.randrange(64)), max(0, size - 64)))
    stop = min(size, start + rng.choice((1, 2, 4, 8, 64, 1024, size)))
    kind = rng.choice(
        ("flip", "flip", "flip", "cut", "behead", "remove", "double", "zero", "insert", "replace",
         "number", "empty", "pointer", "utf-16", "noise")
    )  # fmt: skip
    if kind == "flip" and size:
        for _ in range(rng.choice((1, 1, 1, 4, 16))):
            data[rng.randrange(start, size) if start < size else -1] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[start:]
    elif kind == "behead":
        del data[:start]
    elif kind == "remove":
        del data[start:stop]
    elif kind == "double" and size < _LARGEST:
        data[start:start] = data[start:stop] * rng.choice((1, 1, 50))
    elif kind == "zero":
        data[start:stop] = bytes(stop - start)
    elif kind == "insert":
        data[start:start] = rng.choice(_BYTES)
    elif kind == "replace":
        piece = rng.choice(_BYTES)
        data[start : start + len(piece)] = piece
    elif kind == "number":
        number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
        width = rng.choice((4, 8))
        order: Any = rng.choice(("little", "big"))
        data[start : start + width] = (number % 256**width).to_bytes(width, order)
    elif kind == "noise":
        data[start:stop] = rng.randbytes(min(stop - start, 2**16))
    elif kind == "utf-16":
        data = bytearray(bytes(data).decode("latin-1").encode("utf-16"))
    elif kind in ("empty", "pointer"):
        data = bytearray(_POINTER if kind == "pointer" else b"")
    file.write_bytes(bytes(data))
    return f"{kind} {start}:{stop}"


def _of_files(file: Path, rng: random.Random) -> str:
    others = sorted(other for other in file.parent.iterdir() if other != file)
    other = rng.choice(others) if others else None
    kind = rng.choice(("gone", "swap", "copy", "rename", "folder", "dangling", "loop", "outside"))
    if kind in ("swap", "copy") and other is not None and other.is_file():
        data = file.read_bytes()
        if kind == "swap":
            file.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return f"{kind} with {other.name}"
    if kind == "rename":
        name = rng.choice(_NAMES)
        target = file.with_name(rng.choice((name, f"{name}{file.suffix}"))[:250])
        if not target.exists():
            file.rename(target)
        return f"rename to {target.name!r}"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "dangling":
        file.symlink_to("nowhere")
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "outside":
        file.symlink_to("/etc/hostname")
    return kind


def _of_text(file: Path, rng: random.Random) -> str:
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    kind = rng.choice(
        ("number", "word", "line gone", "line twice", "lines swapped", "line of text")
    )
    place = rng.randrange(len(lines))
    if kind in ("number", "word"):
        found = list(re.finditer(r"-?\d+(\.\d+)?" if kind == "number" else r"\w+", text))
        if found:
            match = rng.choice(found)
            new = str(rng.choice(_NUMBERS)) if kind == "number" else rng.choice(_TEXTS)
            text = text[: match.start()] + new + text[match.end() :]
    else:
        if kind == "line gone":
            del lines[place]
        elif kind == "line twice":
            lines.insert(place, lines[place])
        elif kind == "lines swapped":
            other = rng.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines[place] = rng.choice(_TEXTS)
        text = "\n".join(lines)
    errors = "surrogatepass" if "\ud800" in text else "surrogateescape"
    file.write_bytes(text.encode("utf-8", errors))
    return kind


def _of_json(file: Path, rng: random.Random) -> str:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return _of_text(file, rng)
    value, told = _changed(value, rng)
    file.write_text(json.dumps(value))
    return told


def _of_lines(file: Path, rng: random.Random) -> str:
    lines = file.read_bytes().split(b"\n")
    place = rng.randrange(len(lines))
    try:
        value, told = _changed(json.loads(lines[place]), rng)
    except (ValueError, RecursionError):
        return _of_text(file, rng)
    lines[place] = json.dumps(value).encode()
    file.write_bytes(b"\n".join(lines))
    return f"line {place + 1}, {told}"


def _changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A value of JSON with one part changed, and what was changed."""
    path: list[Any] = []
    node, parent = value, None
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.75):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append(key)
        node, parent = node[key], node
    new = rng.choice(
        (
            None, True, [], {}, [node], {"a": node}, [None], _deep(), str(node)[:5000],
            rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_TEXTS),
            rng.choice(_TEXTS), [1, 2, 3], [-1], [2**62, 2**62],
        )
    )  # fmt: skip
    if parent is None:
        return new, "all of it"
    where = "/".join(map(str, path))[:200]
    if isinstance(parent, dict) and rng.random() < 0.3:
        node = parent.pop(path[-1])
        if rng.random() < 0.5:
            parent[rng.choice(_TEXTS)] = node
            return value, f"{where} renamed"
        return value, f"{where} gone"
    parent[path[-1]] = new
    return value, f"{where} is {str(new)[:60]!r}"


def _deep() -> Any:
    value: Any = 1
    for _ in range(400):
        value = [value]
    return value


def _of_safetensors(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return _of_bytes(file, rng)
    header, told = _changed(header, rng)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"header, {told}"


def _of_table(file: Path, rng: random.Random) -> str:
    """Gives a column another type or name, removes or repeats it, or drops rows or metadata."""
    import pyarrow
    import pyarrow.parquet

    is_parquet = file.suffix == ".parquet"
    try:
        if is_parquet:
            table = pyarrow.parquet.read_table(file)
        else:
            table = pyarrow.ipc.open_stream(file.read_bytes()).read_all()
    except (pyarrow.ArrowException, OSError):
        return _of_bytes(file, rng)
    if not table.num_columns:
        return _of_bytes(file, rng)
    place, count = rng.randrange(table.num_columns), table.num_rows
    name = table.column_names[place]
    kind = rng.choice(("typed", "typed", "gone", "twice", "renamed", "empty", "bare"))
    if kind == "typed":
        columns: list[list[Any]] = [
            [None] * count, list(range(count)), [0.5] * count, [b"\xff\xfe"] * count,
            [""] * count, [["a", "b"]] * count, [{"bytes": None, "path": "/etc/hostname"}] * count,
            [{"bytes": 5}] * count, [{"path": "nowhere.png"}] * count, [True] * count,
            [{"bytes": b"x", "path": "\0"}] * count,
        ]  # fmt: skip
        table = table.set_column(place, name, pyarrow.array(rng.choice(columns)))
    elif kind == "gone":
        table = table.remove_column(place)
    elif kind == "twice":
        table = table.append_column(name, table.column(place))
    elif kind == "renamed":
        names = [*table.column_names]
        names[place] = rng.choice(("", "text", "image", "prompt", "a\nb"))
        table = table.rename_columns(names)
    elif kind == "empty":
        table = table.slice(0, 0)
    if kind == "bare" or rng.random() < 0.5:
        table = table.replace_schema_metadata(None)
    if is_parquet:
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    return f"column {name} {kind}"


def _of_tar(file: Path, rng: random.Random) -> str:
    """Gives a member another name, kind or content, or compresses the archive."""
    try:
        with tarfile.open(file, "r:") as tar:
            members = [(m, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, ValueError):
        return _of_bytes(file, rng)
    if not members:
        return _of_bytes(file, rng)
    member, data = rng.choice(members)
    kind = rng.choice(("renamed", "link", "folder", "twice", "empty", "compressed"))
    if kind == "renamed":
        name = rng.choice((*_NAMES, *_TEXTS, "a.b.png", f"../{member.name}", f"/{member.name}"))
        name = rng.choice((name, f"{name}.png"))
        member.name = name.translate({0: None, 0xD800: None}) or "y"
    elif kind == "link":
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
        member.linkname = "/etc/hostname"
    elif kind == "folder":
        member.type = tarfile.DIRTYPE
    elif kind == "twice":
        members.append((member, data))
    elif kind == "empty":
        members = [(m, b"" if m is member else d) for m, d in members]
    written = io.BytesIO()
    mode: Any = "w:gz" if kind == "compressed" else "w"
    with tarfile.open(fileobj=written, mode=mode, format=tarfile.PAX_FORMAT) as tar:
        for one, content in members:
            one.size, one.pax_headers = (len(content) if one.isfile() else 0), {}
            tar.addfile(one, io.BytesIO(content))
    file.write_bytes(written.getvalue())
    return f"member {kind}"


def _of_archive(file: Path, rng: random.Random) -> str:
    """Gives an array another name, shape or dtype, or makes it one that only a pickle can hold."""
    try:
        with np.load(file) as found:
            arrays: dict[str, Any] = dict(found.items())
    except Exception:
        return _of_bytes(file, rng)
    if not arrays:
        return _of_bytes(file, rng)
    name = rng.choice(sorted(arrays))
    new = rng.choice(
        (
            np.array(None), np.array(["a", "b"]), np.float64("nan"), np.zeros((0, 3)),
            np.zeros(3, np.complex64), np.int64(7), np.array([{}]),
            arrays[name].astype(np.float16) if arrays[name].dtype.kind in "iuf" else 1,
        )
    )  # fmt: skip
    if rng.random() < 0.3:
        arrays[rng.choice(("x", "", "0x0", "4x4", "fingerprint"))] = arrays.pop(name)
    else:
        arrays[name] = new
    np.savez(file, **arrays)
    # numpy adds `.npz` to names that do not end with it.
    if not file.exists():
        shutil.move(f"{file}.npz", file)
    return f"array {name}"


_OF_FORMATS: dict[str, list[Callable[[Path, random.Random], str]]] = {
    ".json": [_of_json, _of_json, _of_json, _of_text],
    ".jsonl": [_of_lines, _of_lines, _of_lines, _of_text],
    ".safetensors": [_of_safetensors] * 4,
    ".parquet": [_of_table] * 2,
    ".arrow": [_of_table] * 2,
    ".tar": [_of_tar] * 2,
    ".npz": [_of_archive] * 2,
    ".png": [_of_bytes],
    ".jpg": [_of_bytes],
    "": [_of_json, _of_json, _of_bytes],
}
"""Further kinds of changes by a file's suffix; some of Orbax's JSON files have no suffix."""

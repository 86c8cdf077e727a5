"""Google Cloud Storage: local copies of what is read, and uploads of what is whole.

Libraries map weights and records into memory and open files by their paths, so what an address
(`gs://BUCKET/NAME`) names is copied once to a disk of this machine, below `LADD_JAX_CACHE`
(default: `~/.cache/ladd_jax`). A copy is used again as long as the object's generation and size are
the same; copies of what the bucket no longer has are removed. The client is imported only for
addresses.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any

from ladd_jax.errors import ExistsError, UserError, brief

_LOG = getLogger(__name__)

SCHEME = "gs://"
CACHE = "LADD_JAX_CACHE"
"""The variable that names the folder of local copies."""

_THREADS = 8
_GB = 1e9


def is_address(path: str | Path) -> bool:
    """Whether a path, as a user wrote it or as `Path` shortened it, is an address."""
    # `Path` leaves one slash of two.
    return str(path).startswith(SCHEME[:-1])


def address_of(path: Path) -> str:
    """The address that a path is the local copy of; empty for any other path."""
    try:
        return SCHEME + path.relative_to(_copies()).as_posix()
    except ValueError:
        return ""


def place_of(address: str | Path) -> Path:
    """Where the local copy of an address lies, or would lie.

    Raises:
      UserError: it names no bucket, or a name that no folder can have.
    """
    parts = _name(address).split("/")
    if not parts[0] or not {".", ".."}.isdisjoint(parts):
        raise UserError(f"{address} is not an address of a bucket: write {SCHEME}BUCKET/NAME")
    return _copies().joinpath(*parts)


@functools.cache
def fetch(address: str | Path) -> Path:
    """A local copy of an object, or of all objects below a prefix, as they are at the first call.

    Any number of processes may fetch the same. Each file appears whole.

    Returns:
      A file or a folder, or a path where nothing is if the bucket has nothing of that name.

    Raises:
      UserError: the client is not installed; the bucket cannot be read, or not as it was listed; or
        the disk has no space for it.
    """
    target = place_of(address)
    # Of several processes on one machine the others wait, and find the copies there.
    with _locked(target):
        wanted = {_copies() / name: info for name, info in _listed(address).items()}
        _remove_others(target, wanted)
        missing = {path: info for path, info in wanted.items() if not _is_copy(path, info)}
        if missing:
            _check_space(address, sum(int(info["size"]) for info in missing.values()))
            _LOG.info("%s: copying %d files to %s", _shown(address), len(missing), target)
            with _one_sentence(address, "read"), ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(_copy, missing, missing.values()))
    return target


def find(pattern: str) -> list[str]:
    """Addresses of what a pattern such as `gs://bucket/data/*.tar` names, objects and prefixes, in
    order.

    Raises:
      UserError: see `fetch`.
    """
    with _one_sentence(pattern, "read"):
        return [SCHEME + name for name in sorted(_client().glob(_name(pattern)))]


@contextlib.contextmanager
def uploading(address: str, last: str) -> Iterator[Path]:
    """A folder to make in a block, which is uploaded to an address if the block ends without error.

    An object store has no folders that appear whole: the file `last`, without which readers find
    nothing, is uploaded after all others, and the files of a failed upload are removed.

    Args:
      address: a prefix with nothing below it yet.
      last: name of a file in that folder.

    Yields:
      A path with the prefix's name, where nothing is yet.

    Raises:
      ExistsError: there is something at the address.
      UserError: see `fetch`; or the bucket cannot be written to.
    """
    name = place_of(address).name
    if _listed(address):
        raise ExistsError(f"{address} exists: remove it, or choose another --out")
    above = _root() / "uploads" / uuid.uuid4().hex
    above.mkdir(parents=True)
    try:
        yield above / name
        _upload(above / name, address, last)
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _upload(folder: Path, address: str, last: str) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    files.sort(key=lambda file: file == folder / last)
    store, prefix = _client(), _name(address)
    done: list[str] = []
    _LOG.info("%s: uploading %d files", address, len(files))
    with _one_sentence(address, "written to"):
        try:
            for file in files:
                name = f"{prefix}/{file.relative_to(folder).as_posix()}"
                store.put_file(str(file), name, consistency="md5")
                done.append(name)
        except BaseException:
            with contextlib.suppress(Exception):
                store.rm(done)
            raise


def _locked(target: Path) -> contextlib.AbstractContextManager[Any]:
    # Importing it takes a tenth of a second.
    import filelock

    folder = _root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / hashlib.sha256(str(target).encode()).hexdigest())


def _root() -> Path:
    return Path(os.environ.get(CACHE) or "~/.cache/ladd_jax").expanduser().resolve()


def _copies() -> Path:
    return _root() / "gs"


def _name(address: str | Path) -> str:
    """Bucket and name of an object, as the client writes them."""
    return str(address)[len(SCHEME) - 1 :].strip("/")


def _shown(address: str | Path) -> str:
    return SCHEME + _name(address)


@functools.cache
def _client() -> Any:
    try:
        import gcsfs
    except ImportError as error:
        raise UserError(
            f"{SCHEME} addresses need the package gcsfs: run `pip install ladd_jax[gcs]`, or copy "
            f"what is there to a folder"
        ) from error
    return gcsfs.GCSFileSystem(use_listings_cache=False)


def _listed(address: str | Path) -> dict[str, Mapping[str, Any]]:
    """Objects of that name or below it, by bucket and name, without those that stand for folders.

    Raises:
      UserError: see `fetch`; or an object has the name of a folder of others.
    """
    place_of(address)
    with _one_sentence(address, "read"):
        try:
            found = _client().find(_name(address), detail=True)
        except FileNotFoundError:
            found = {}
    # A folder that was made in a browser is an empty object whose name ends in a slash.
    found = {name: info for name, info in found.items() if not info["name"].endswith("/")}
    for name in found:
        parts = name.split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            raise UserError(f"{SCHEME}{name} has a name that no file can have: rename the object")
        for count in range(1, len(parts)):
            above = "/".join(parts[:count])
            if above in found:
                raise UserError(
                    f"{SCHEME}{above} is an object and has {SCHEME}{name} below it, which no disk "
                    f"can have: rename one"
                )
    return found


def _is_copy(path: Path, info: Mapping[str, Any]) -> bool:
    try:
        stat = path.lstat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (int(info["size"]), _time(info))


def _time(info: Mapping[str, Any]) -> int:
    """Time of a copy in ns: its object's generation, which is in µs and differs by version."""
    return 1000 * int(info["generation"])


def _copy(path: Path, info: Mapping[str, Any]) -> None:
    partial = _root() / "partial" / uuid.uuid4().hex
    partial.parent.mkdir(parents=True, exist_ok=True)
    # Objects that were composed from others have no MD5.
    consistency = "md5" if info.get("md5Hash") else "size"
    try:
        _client().get_file(
            info["name"], str(partial), generation=info["generation"], consistency=consistency
        )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if partial.stat().st_size != int(info["size"]):
            raise OSError(f"{info['name']} came with {partial.stat().st_size} bytes")
        os.utime(partial, ns=(_time(info), _time(info)))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_others(target: Path, wanted: Mapping[Path, Any]) -> None:
    """Removes copies of what the bucket no longer has."""
    folders = {folder for path in wanted for folder in path.parents}
    # What is a folder now may have been an object.
    for path in (target, *target.parents):
        if path.is_file() and path not in wanted:
            path.unlink(missing_ok=True)
    for path in sorted(target.rglob("*")) if target.is_dir() else ():
        if path.is_dir() and path not in folders:
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir() and path not in wanted:
            path.unlink(missing_ok=True)


def _check_space(address: str | Path, size: int) -> None:
    root = _root()
    free = shutil.disk_usage(root).free
    if size > free:
        raise UserError(
            f"{_shown(address)} has {size / _GB:.3g} GB to be copied and the disk of {root} has "
            f"{free / _GB:.3g} GB free: free space there, set {CACHE} to a folder of another disk, "
            f"or mount the bucket with gcsfuse and name the folder instead"
        )


@contextlib.contextmanager
def _one_sentence(address: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    # The client, its credentials and the network raise errors of many kinds.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{_shown(address)} cannot be {what} ({brief(error)[:200].rstrip('.')}): check its "
            f"name, what this machine's account may do there, and the network"
        ) from error

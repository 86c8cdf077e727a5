"""Uploads a folder to the Hugging Face hub."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ladd_jax.errors import UserError, brief
from ladd_jax.weights.source import names_repository


def check_push(repository: str) -> None:
    """Checks what can be checked about an upload before there is anything to upload.

    Raises:
      UserError: the name is not an OWNER/NAME that the hub allows, nobody is logged in, the token
        may only read, or the hub cannot be reached.
    """
    if not names_repository(repository):
        raise UserError(f"--push={repository} is not a repository on the hub: use OWNER/NAME")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.utils.validate_repo_id(repository)
    except errors.HFValidationError as error:
        raise UserError(
            f"--push={repository} is not a name that the hub allows ({brief(error).rstrip('.')}): "
            f"use another"
        ) from error
    with _told(f"{repository} cannot be written to", "nothing is exported"):
        auth = huggingface_hub.HfApi().whoami().get("auth") or {}
        if (auth.get("accessToken") or {}).get("role") == "read":
            raise ValueError("the token may only read")


def push(folder: Path, repository: str) -> str:
    """Uploads a folder in one commit, and creates the repository if there is none.

    Returns:
      the commit's URL.

    Raises:
      UserError: the hub rejects it; the folder is left as it is.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with _told(f"{folder} was not uploaded", f"{folder} is whole"):
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder).commit_url)


@contextlib.contextmanager
def _told(what: str, left: str) -> Iterator[None]:
    """Turns the hub's errors into a sentence that says what failed and what state it leaves."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = brief(error)
        raise UserError(
            f"{what} ({reason}), and {left}: run `hf auth login` with a token that may write, or "
            f"try again with a connection"
        ) from error

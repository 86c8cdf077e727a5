"""A folder uploaded to the Hugging Face hub."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ladd_jax.errors import UserError, brief
from ladd_jax.weights.source import names_repository


def check_push(repository: str) -> None:
    """Checks what can be known of an upload before there is anything to upload.

    Raises:
      UserError: no name of a repository, nobody is logged in, or the hub is out of reach.
    """
    if not names_repository(repository):
        raise UserError(f"--push={repository} is no repository of the hub: use OWNER/NAME")
    import huggingface_hub

    with _told(f"{repository} cannot be written to", "nothing is exported"):
        huggingface_hub.HfApi().whoami()


def push(folder: Path, repository: str) -> str:
    """Uploads a folder, in one commit; the repository is made where it is not there.

    Returns:
      The commit's address.

    Raises:
      UserError: the hub does not take it; the folder stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with _told(f"{folder} was not uploaded", f"{folder} is whole"):
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder).commit_url)


@contextlib.contextmanager
def _told(what: str, left: str) -> Iterator[None]:
    """Turns the hub's errors into a sentence: what failed, and what is left."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = brief(error)
        raise UserError(
            f"{what} ({reason}), and {left}: run `hf auth login` with a token that may write, or "
            f"try again with a connection"
        ) from error

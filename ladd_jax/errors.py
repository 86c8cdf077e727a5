"""Errors that the user can fix, reported one at a time or all at once."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something that the user can fix: the message is one sentence with value, limit and remedy.

    Commands print it without a traceback and end with exit code 2. Every other exception is a
    defect and keeps its traceback.
    """


class NotFoundError(UserError, FileNotFoundError):
    """A file, a checkpoint or a model that the user named is not there."""


class ExistsError(UserError, FileExistsError):
    """Something is already there where the user wants something written."""


class DamagedError(UserError):
    """A file is there but damaged: cut, empty, changed, or not what its name says."""


class NotFiniteError(UserError):
    """What a network makes, or a metric of it, is not a finite number."""


def brief(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserErrors(UserError):
    """Several things that the user can fix.

    Attributes:
      problems: one sentence for each.
    """

    def __init__(self, problems: tuple[str, ...]):
        """Joins the sentences.

        Args:
          problems: one sentence for each.
        """
        super().__init__("; ".join(problems))
        self.problems = problems


class Problems:
    """The errors in what a user gave, collected so that all are reported at once."""

    def __init__(self) -> None:
        """Starts without any."""
        self._found: dict[str, UserError] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in words."""
        return tuple(self._found)

    def add(self, error: UserError) -> None:
        """Keeps an error, or the errors that it consists of; the same sentence counts once."""
        if isinstance(error, UserErrors):
            self._found |= {text: UserError(text) for text in error.problems}
        else:
            self._found.setdefault(str(error), error)

    @contextlib.contextmanager
    def found(self) -> Iterator[None]:
        """A block whose UserError is kept and not raised: what follows the block still runs."""
        try:
            yield
        except UserError as error:
            self.add(error)

    def tell(self) -> None:
        """Raises what was found, several errors as UserErrors; does nothing where all is well."""
        if len(self._found) == 1:
            raise next(iter(self._found.values()))
        if self._found:
            raise UserErrors(tuple(self._found))

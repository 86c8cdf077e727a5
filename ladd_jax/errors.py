"""Errors that the user can fix."""


class UserError(ValueError):
    """Something that the user can fix: the message is one sentence with value, limit and remedy.

    Commands print it without a traceback and end with exit code 2. Every other exception is a
    defect and keeps its traceback.
    """


class NotFoundError(UserError, FileNotFoundError):
    """A file, a checkpoint or a model that the user named is not there."""


class ExistsError(UserError, FileExistsError):
    """There is something already where the user wants something written."""


class DamagedError(UserError):
    """A file is there and not whole: cut, empty, changed, or other than its name says."""

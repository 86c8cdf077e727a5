"""Imports packages that add entries to the tables of this library, when a command starts.

An installed package names one of its modules as an entry point of the group `ladd_jax`. Then
commands that open a run which uses the package's entries, such as `sample`, know them too.
"""

from importlib.metadata import entry_points

from ladd_jax.errors import UserError

GROUP = "ladd_jax"


def load_extensions() -> None:
    """Imports the modules of the group's entry points, in the order of the entry points' names.

    Raises:
      UserError: one of them cannot be imported.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the extension {point.name} ({point.value}) cannot be imported "
                f"({type(error).__name__}: {error}): repair it, or uninstall its package"
            ) from error

"""Packages that add entries to the tables of this library are imported as a command starts.

An installed package names a module of its own as an entry point of the group `ladd_jax`, so that
commands which read a run of its pieces, such as `sample`, know them, too.
"""

from importlib.metadata import entry_points

from ladd_jax.errors import UserError

GROUP = "ladd_jax"


def load_extensions() -> None:
    """Imports what the entry points of the group name, in the order of their names.

    Raises:
      UserError: one of them cannot be imported.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the extension {point.name} ({point.value}) cannot be imported "
                f"({type(error).__name__}: {error}): mend it, or uninstall its package"
            ) from error

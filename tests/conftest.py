"""Eight simulated devices and quick compilation for every test, set before JAX starts."""

import os

from hypothesis import settings
from quick_compilation import quick_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_flags(devices=8)}"

# The first example of a property compiles, and a loaded machine is slow: no example has a deadline.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_collection_modifyitems(items):
    """The file with the longest test first: no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_commands.py")

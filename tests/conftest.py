"""Eight simulated devices and quick compilation for every test, set before JAX starts."""

import os

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests run tiny programs once: they wait for the compiler and not for the program.
    + " --xla_backend_optimization_level=0"
)

# The first example of a property compiles, and a loaded machine is slow: no example has a deadline.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_collection_modifyitems(items):
    """The file with the longest test first: no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_commands.py")

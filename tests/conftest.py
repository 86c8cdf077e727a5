"""Eight simulated devices and quick compilation for every test, set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Tests run tiny programs once: they wait for the compiler and not for the program.
    + " --xla_backend_optimization_level=0"
)

"""XLA's flags for tests: tiny programs that run a few times wait for the compiler alone."""

QUICK = (
    "--xla_backend_optimization_level=0"
    # These emit a fusion by way of MLIR, which takes half of a step's compilation.
    " --xla_cpu_use_fusion_emitters=false"
    # One module for each program: several are for cores that tests do not have to spare.
    " --xla_cpu_parallel_codegen_split_count=1"
)


def quick_flags(devices):
    """The same with this many simulated devices."""
    return f"{QUICK} --xla_force_host_platform_device_count={devices}"

"""Compiled programs kept on disk, so that a run that starts again compiles nothing."""

from pathlib import Path

import jax


def keep_programs(directory: str, workdir: Path) -> None:
    """Makes JAX read compiled programs from a directory, and write there those that it lacks.

    A program is found by what it computes, the devices and the version of the compiler: another
    config, mesh, machine or release compiles anew. Of several processes the first one writes.

    Args:
      directory: in the workdir unless it is absolute or an address (`gs://...`); empty keeps none.
      workdir: of the run.
    """
    if not directory:
        return
    place = directory if "://" in directory else str(workdir.absolute() / directory)
    jax.config.update("jax_compilation_cache_dir", place)
    # By default only what took a second to compile; many small ones take long together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

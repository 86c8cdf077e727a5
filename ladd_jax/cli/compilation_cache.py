"""Compiled programs kept on disk, so that a run that starts again compiles nothing."""

from pathlib import Path

import jax

from ladd_jax.paths import expand


def keep_programs(directory: str, workdir: Path) -> None:
    """Makes JAX read compiled programs from a directory, and write new ones there.

    A program is found by what it computes, by the devices and by the version of the compiler: with
    another config, mesh, machine or release it is compiled again. If there are several processes,
    the first one writes.

    Args:
      directory: folder in the workdir, or an absolute path or address (`gs://...`); empty keeps
        none.
      workdir: the run's workdir.
    """
    if not directory:
        return
    place = directory if "://" in directory else str(workdir.absolute() / expand(directory))
    jax.config.update("jax_compilation_cache_dir", place)
    # By default JAX keeps only programs that took a second to compile, but many small ones add up.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

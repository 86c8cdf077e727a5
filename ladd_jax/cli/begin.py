"""Begins a run: reports all errors at once, takes ownership of the workdir and finds the data."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

import jax

from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.cli.ownership import check_unread, owned, reading
from ladd_jax.cli.preflight import look
from ladd_jax.cli.unfinished import remove_unfinished
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.config.workdir import data_named, settle, settled
from ladd_jax.errors import Problems, UserError
from ladd_jax.object_store import address_of
from ladd_jax.parallel import processes
from ladd_jax.stages.made import check_made, check_on_disk, open_places


@contextlib.contextmanager
def begun(
    config: Config,
    workdir: Path,
    *,
    data: str = "",
    origin: str = "",
    stage: str = "",
    problems: Problems | None = None,
    refused: Collection[str] = (),
) -> Iterator[None]:
    """A block in which a workdir is ready for the stages of a config; all processes must enter it.

    Args:
      config: the run's config.
      workdir: the run's workdir, which need not exist.
      data: directory of data that the run shares with others; empty for its own.
      origin: workdir of a run whose student this one begins with; or empty.
      stage: the only stage to run, whether or not the config has it; empty for all stages of the
        config.
      problems: errors that are known already; default: none.
      refused: sections and fields of the config that are known to be invalid.

    Raises:
      ExistsError: a running job owns the workdir, or reads data that would change.
      UserError: something is wrong; all errors are reported, and nothing has been written.
    """
    problems = problems or Problems()
    left_out = stage and stage not in config.stages
    alone = dataclasses.replace(config, stages=(stage,)) if stage else config
    with problems.found():
        # Only process 0 looks: for the others a network disk would cache that nothing is there.
        here = str(data_named(workdir, data, origin)) if jax.process_index() == 0 else ""
        place = Path(processes.gather(here)[0])
        look(alone if left_out else config, problems, workdir, refused, place, origin)
    problems.tell()
    settings = to_dict(config)
    processes.check_same("config", settings)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            places = open_places(alone, workdir, data, origin)
            writes = check_made(alone, workdir, places)
            check_on_disk(alone, places.data, writes)
            stack.enter_context(owned(workdir))
            settle(workdir, settings, places)
            remove_unfinished(workdir)
            shares = places.data.resolve() != workdir.resolve()
            if shares and writes.makes:
                stack.enter_context(owned(places.data, "data"))
                remove_unfinished(places.data)
            if writes.alters:
                check_unread(places.data)
            if shares and not address_of(places.data):
                stack.enter_context(reading(places.data))
        # The others look only after this, or a network disk would cache that nothing is there.
        processes.barrier("settled")
        if not settled(workdir):
            raise UserError(
                f"process {jax.process_index()} does not see the {workdir} that process 0 "
                f"made: give a --workdir on a disk that all processes share"
            )
        keep_programs(config.compilation_cache, workdir)
        yield

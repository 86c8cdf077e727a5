"""`python -m ladd_jax.serve --checkpoint=DIR`: a page that shows pictures while a prompt is typed.

Each key shows what the student makes in one step; a pause or Enter shows it in all of its steps. A
student that edits is given a picture on the page, and one that fills holes a picture and what is
painted over it.
`--checkpoint` is the workdir of a run or an exported student, as for `ladd_jax.sample`. Everything
is compiled before the page, and `/ready`, say that it is ready. Needs gradio:
`pip install "ladd_jax[serve]"`.

Examples:

    python -m ladd_jax.serve --checkpoint=runs/digits
    python -m ladd_jax.serve --checkpoint=sd3-turbo --aspects=1:1,16:9 --batch_size=8 --port=8080
    python -m ladd_jax.serve --checkpoint=runs/sd3_turbo --host=0.0.0.0
    python -m ladd_jax.serve --checkpoint=runs/sd3_inpaint --aspects=1:1
"""

import dataclasses
import importlib.util
import logging
import socket
import threading

from absl import flags

from ladd_jax.cli.flags import check_ranges
from ladd_jax.cli.network_flags import define_dtype, define_loras, define_step
from ladd_jax.cli.run import run_without_config
from ladd_jax.errors import UserError
from ladd_jax.names import counted
from ladd_jax.paths import expand
from ladd_jax.ranges import COUNT, Range

# Not `__name__`, which is `__main__` when this runs as a command.
_LOG = logging.getLogger("ladd_jax.serve")

_PORT_RANGE = Range(least=1, most=65535)

FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "A run's workdir, an exported student's folder, or owner/name of the hub.",
    flag_values=FLAGS,
)
_STEP = define_step(FLAGS)
_LORA = define_loras(FLAGS)
_ASPECTS = flags.DEFINE_list(
    "aspects",
    [],
    "W:H or WxH of the shapes to offer; default: all of the training.",
    flag_values=FLAGS,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    4,
    "Most pictures to make at once, for one request or for several.",
    flag_values=FLAGS,
)
_QUEUE = flags.DEFINE_integer(
    "queue", 32, "Requests that may wait; others are refused.", flag_values=FLAGS
)
_DTYPE = define_dtype(FLAGS)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve at; 0.0.0.0 for other machines.", flag_values=FLAGS
)
_PORT = flags.DEFINE_integer("port", 7860, "Port to serve at.", flag_values=FLAGS)


def main() -> None:
    """The command."""
    check_ranges(FLAGS, {"batch_size": COUNT, "queue": COUNT, "port": _PORT_RANGE})
    if importlib.util.find_spec("gradio") is None:
        raise UserError('gradio is not installed: pip install "ladd_jax[serve]"')
    # The port is taken before minutes are spent on reading and compiling.
    with _bound(_HOST.value, _PORT.value) as listening:
        _serve(listening)


def _serve(listening: socket.socket) -> None:
    # Heavy imports come after the flags are read, so that a mistake in them is told at once.
    import jax
    import jax.numpy as jnp

    from ladd_jax.cli.compilation_cache import keep_programs
    from ladd_jax.config.workdir import read
    from ladd_jax.parallel.mesh import make_mesh
    from ladd_jax.serving.engine import Engine
    from ladd_jax.serving.student import Student
    from ladd_jax.stages.sample import choose_bucket
    from ladd_jax.stages.trained import is_run, open_trained

    workdir = expand(_CHECKPOINT.value)
    if is_run(workdir):
        keep_programs(read(workdir).compilation_cache, workdir)
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    dtype = None if _DTYPE.value is None else jnp.dtype(_DTYPE.value)
    trained = open_trained(_CHECKPOINT.value, None, _STEP.value, dtype, mesh, _LORA.value)
    if _ASPECTS.value:
        buckets = dict.fromkeys(choose_bucket(aspect, trained) for aspect in _ASPECTS.value)
        trained = dataclasses.replace(trained, buckets=tuple(buckets))
    student = Student(trained, mesh, _BATCH_SIZE.value)

    import uvicorn

    from ladd_jax.serving.page import Page
    from ladd_jax.serving.ready import Ready

    engine, ready = Engine(student, student.sizes, _QUEUE.value), Ready()
    page = Page(student, engine, ready)
    config = uvicorn.Config(page.app(), log_level="warning")
    server = uvicorn.Server(config)
    address = "http://{}:{}".format(*listening.getsockname()[:2])
    failed: list[BaseException] = []

    def warm_up() -> None:
        _LOG.info(
            "serve: compiling %s; %s shows how many are done",
            counted(len(student.programs), "program"),
            address,
        )
        try:
            student.warm_up(ready.told)
            _LOG.info("serve: ready at %s", address)
        # Raised by the main thread later: nobody would learn of an error in this one.
        except BaseException as error:
            failed.append(error)
            server.should_exit = True

    threading.Thread(target=warm_up, daemon=True).start()
    server.run([listening])
    engine.close()
    if failed:
        raise failed[0]


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
      UserError: there is no such address, or its port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    # A name whose parts are empty or too long raises UnicodeError.
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}:{port} cannot be served at ({reason}): name another --port or --host"
        ) from error
    return listening


if __name__ == "__main__":
    run_without_config(main, FLAGS, needed={"checkpoint": "DIR"})

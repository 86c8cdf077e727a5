"""A headless Chromium, driven through a pipe by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)

_TEXTS = {"Enter": "\r"}
"""Text that is typed by keys that have a name."""


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, if one is installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a headless Chromium.

    Attributes:
      events: the browser's messages so far, except answers to calls.
    """

    def __init__(
        self,
        width: int = 1280,
        height: int = 720,
        patience: float = 60,
        downloads: Path | None = None,
        offline: bool = False,
    ):
        """Starts the browser.

        Args:
          width: width of the page, in pixels.
          height: height of the page, in pixels.
          patience: seconds that `wait` waits.
          downloads: folder of downloads; None refuses them.
          offline: whether no host name is resolved to an address.

        Raises:
          RuntimeError: no browser is installed.
        """
        program = find_browser()
        if program is None:
            raise RuntimeError("no Chromium is installed: apt-get install chromium")
        self._patience, self._last, self.events = patience, 0, list[dict[str, Any]]()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        self._pending = b""
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", program, *_OPTIONS,
             f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}",
             *(["--host-resolver-rules=MAP * ~NOTFOUND"] if offline else [])],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        if downloads is not None:
            self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> Any:
        """Calls a method of the protocol, and returns its result.

        Raises:
          RuntimeError: the method failed.
        """
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") != self._last:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._pending += part
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        """Opens an address; if the page shows it already, loads it again."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def value(self, expression: str) -> Any:
        """Evaluates an expression in the page and returns its value; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Waits until an expression is true, and returns its value.

        Raises:
          RuntimeError: it did not become true in time.
        """
        stop = time.monotonic() + self._patience
        while not (found := self.value(expression)):
            if time.monotonic() > stop:
                raise RuntimeError(f"after {self._patience:g} s this is not true: {expression}")
            time.sleep(0.05)
        return found

    def type(self, text: str) -> None:
        """Types text into the element that has the focus."""
        for letter in text:
            self.press(letter)

    def press(self, key: str) -> None:
        """Presses a key: a letter, or a name such as Enter or ArrowLeft."""
        text = key if len(key) == 1 else _TEXTS.get(key, "")
        named: dict[str, Any] = {"key": key}
        if text:
            named["windowsVirtualKeyCode"] = ord(text.upper())
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def drag(self, *points: tuple[float, float]) -> None:
        """Moves the mouse along points of the page with its left button down."""

        def move(kind: str, point: tuple[float, float], buttons: int) -> None:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=point[0], y=point[1], button="left", buttons=buttons, clickCount=1,
            )  # fmt: skip

        move("mouseMoved", points[0], 0)
        move("mousePressed", points[0], 1)
        for point in points[1:]:
            move("mouseMoved", point, 1)
        move("mouseReleased", points[-1], 0)

    def upload(self, selector: str, file: Path) -> None:
        """Gives a file to an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screenshot(self, file: Path) -> None:
        """Writes a picture of the page to a PNG file."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    @property
    def addresses(self) -> list[str]:
        """Addresses of all that the page has requested so far."""
        return [told["request"]["url"] for told in self._told("Network.requestWillBeSent")]

    @property
    def problems(self) -> list[Any]:
        """Errors and warnings of the page so far."""
        return self._told("Runtime.exceptionThrown", "Log.entryAdded")

    def _told(self, *methods: str) -> list[Any]:
        self.value("0")
        return [event["params"] for event in self.events if event.get("method") in methods]

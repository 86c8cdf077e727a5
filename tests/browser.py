"""A headless Chromium, told what to do over the pipe of its DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import count

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), ""
)
"""The browser of this machine; empty where there is none."""

# Chromium reads commands from descriptor 3 and writes answers to 4.
_START = "import os, sys; os.dup2({0}, 103); os.dup2({1}, 104); os.dup2(103, 3); os.dup2(104, 4); "
_START += "os.execv(sys.argv[1], sys.argv[1:])"


class Browser:
    """One tab."""

    def __init__(self, profile, downloads):
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        flags = [
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--hide-scrollbars", "--disable-background-networking", "--disable-extensions",
            # No name has an address: whatever the page asked for elsewhere would fail.
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(reads, writes), PROGRAM, *flags],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._numbers, self._rest, self._session = count(1), b"", None
        self.requests, self.problems = [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self._call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads)
        )  # fmt: skip

    def _call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        match found.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(found["params"]["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.problems.append(found["params"])
        return found

    def open(self, url, width=1280, height=800, dark=False):
        """Loads a page anew, also one that is open."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script):
        """The value of an expression, of which a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script, seconds=20):
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def press(self, key):
        """A key, as of a keyboard."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self):
        """A PNG of what is seen."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def close(self):
        """Ends the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self._call("Browser.close")
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)

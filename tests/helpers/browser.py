"""A browser without a window, told what to do over Chromium's DevTools pipe."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
# Chromium wants its pipes as files 3 and 4.
_START = """
import fcntl, os, sys
for number, file in enumerate(sys.argv[1:3], 3):
    os.dup2(fcntl.fcntl(int(file), fcntl.F_DUPFD, 10), number)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_PATIENCE = 120  # Seconds.


def found():
    """Path of a browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is open; `send` is a command of the DevTools protocol."""

    def __init__(self, read, write):
        self._read, self._write, self._rest = read, write, b""
        self._count, self._session, self.requests = 0, None, []

    def open(self, path, width=1280, height=900, *, media=(), touch=False):
        target = self.send("Target.createTarget", url="about:blank")
        self._session = self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        self.send("Page.enable")
        self.send("Network.enable")
        self.send("Emulation.setEmulatedMedia", features=[*media])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self.send("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def send(self, method, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while True:
            answer = self._next(end)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, end):
        while b"\0" not in self._rest:
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left)
            assert ready, "The browser does not answer."
            part = os.read(self._read, 1 << 20)
            assert part, "The browser has ended."
            self._rest += part
        answer, _, self._rest = self._rest.partition(b"\0")
        return json.loads(answer)

    def run(self, script):
        """The value of an expression of JavaScript."""
        answer = self.send(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script):
        """Waits until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def mouse(self, kind, x, y, **more):
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, name, text=None):
        more = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, **more)
            more = {}

    def screenshot(self, path, *, is_whole=False):
        answer = self.send(
            "Page.captureScreenshot", captureBeyondViewport=is_whole
        )
        pathlib.Path(path).write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path):
        answer = self.send("Page.printToPDF")
        pathlib.Path(path).write_bytes(base64.b64decode(answer["data"]))


@contextlib.contextmanager
def browsing():
    """Context of a `Page` of a browser that is started for it."""
    (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        command = [
            *(sys.executable, "-c", _START, str(theirs_in), str(theirs_out)),
            *(found(), "--headless", "--no-sandbox", "--disable-gpu"),
            *("--remote-debugging-pipe", f"--user-data-dir={home}"),
            *("--no-first-run", "--disable-dev-shm-usage", "about:blank"),
        ]
        process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(ours_in, ours_out)
        finally:
            os.close(ours_out)  # It ends when nobody can tell it anything.
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_in)

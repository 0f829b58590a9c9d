"""A headless Chromium that is told what to do through two pipes (Chrome DevTools protocol)."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


def find_browser():
    """Path of a Chromium: $BROWSER_PATH, else one of the usual names; None if there is none."""
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. ``events`` are all that the browser tells, in order."""

    def __init__(self, path, folder):
        into, self._write = os.pipe()  # Chromium reads its file descriptor 3 and writes 4
        self._read, out = os.pipe()
        shell = f'exec "$@" 3<&{into} 4>&{out}'
        command = ["bash", "-c", shell, "-", path, *ARGUMENTS, f"--user-data-dir={folder}", "about:blank"]
        with open(Path(folder) / "browser.log", "wb") as log:
            self._process = subprocess.Popen(command, pass_fds=(into, out), stdout=log, stderr=log)
        os.close(into)
        os.close(out)
        self._rest, self._number, self.events, self._session = b"", 0, [], None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self, seconds=60):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], seconds)[0], "the browser says nothing"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def wait(self, method):
        while not any(event["method"] == method for event in self.events):
            self._next()

    def open(self, path, width=1280, height=900, dark=False):
        """Show a file in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression):
        """What a JavaScript expression is worth, as JSON gives it."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def complaints(self):
        """What stands on the console, and errors."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in names]

    def requests(self):
        """URLs that were asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        for handle in (self._write, self._read):
            os.close(handle)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        time.sleep(0)

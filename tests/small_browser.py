"""A browser for tests: Debian's chromium without a window, driven over its own protocol."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np

CHROMIUM = shutil.which("chromium")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
]


class Browser:
    """One page of a browser.

    The protocol (https://chromedevtools.github.io/devtools-protocol) runs through two pipes, which
    are the browser's files 3 and 4: JSON, each message ended by a NUL.

    Args:
        folder: new, for the browser's profile.
        patience: seconds to wait for an answer.
    """

    def __init__(self, folder: Path, *, patience: float = 60) -> None:
        # Numbers above 4, so that neither pipe is in the way of the other.
        theirs, ours, answers, say = (
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
            for pipe in (os.pipe(), os.pipe())
            for end in pipe
        )
        self.patience, self.numbers, self.buffer = patience, itertools.count(1), b""
        self.requests, self.complaints, self.session = [], [], None
        self.to, self.answers = ours, answers
        log = (folder.parent / "chromium.log").open("wb")
        self.process = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, 3),
                (os.POSIX_SPAWN_DUP2, say, 4),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setpgroup=0,
        )
        for end in (theirs, say):
            os.close(end)
        log.close()
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Network", "Log", "Runtime"):
            self(f"{part}.enable")

    def __call__(self, method: str, **parameters):
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self._wait(lambda answer: answer.get("id") == number, method)

    def _wait(self, wanted, what: str):
        deadline = time.monotonic() + self.patience
        while True:
            while b"\0" in self.buffer:
                text, _, self.buffer = self.buffer.partition(b"\0")
                message = json.loads(text)
                self._note(message)
                if wanted(message):
                    assert "error" not in message, (what, message["error"])
                    return message.get("result")
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.answers], [], [], left)[0], f"no answer: {what}"
            data = os.read(self.answers, 1 << 20)
            assert data, f"the browser ended: {what}"
            self.buffer += data

    def _note(self, message) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))

    def open(self, url: str, width: int, height: int, *, touch: bool = False, ratio: float = 1):
        """Load a page in a window of so many CSS pixels, with `ratio` pixels of the screen each."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=ratio, mobile=touch)  # fmt: skip
        self("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.requests.clear()
        self.complaints.clear()
        number = next(self.numbers)
        message = {"id": number, "method": "Page.navigate", "params": {"url": url}}
        os.write(self.to, json.dumps(message | {"sessionId": self.session}).encode() + b"\0")
        self._wait(lambda event: event.get("method") == "Page.loadEventFired", url)

    def js(self, expression: str):
        """The value of an expression in the page."""
        answer = self(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, *points, button: str = "left", count: int = 1) -> None:
        """Press at the first point, move over the others and let go; points in CSS pixels."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        held = {"left": 1, "right": 2}[button]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button,
                buttons=held if kind != "mouseReleased" else 0, clickCount=count,
            )  # fmt: skip

    def touch(self, *steps) -> None:
        """Put fingers down at the first step's points, move them over the others, lift them."""
        kinds = ["touchStart", *["touchMove"] * (len(steps) - 1), "touchEnd"]
        for kind, points in zip(kinds, [*steps, ()], strict=True):
            fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            self("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def keys(self, *names: str) -> None:
        """Press keys, each a `key` of the DOM, with 'Shift+' before it where that is held."""
        for name in names:
            key = name.removeprefix("Shift+")
            modifiers = {"modifiers": 8} if key != name else {}
            self("Input.dispatchKeyEvent", type="rawKeyDown", key=key, **modifiers)
            self("Input.dispatchKeyEvent", type="keyUp", key=key, **modifiers)

    def screenshot(self) -> np.ndarray:
        """What the window shows, (H, W, 3) uint8 RGB."""
        data = base64.b64decode(self("Page.captureScreenshot", format="png")["data"])
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """End the browser and its helpers."""
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.to)
        os.close(self.answers)

# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A real browser for tests: chromium without a window, over the DevTools protocol and two pipes.

The pipes need no package. Chromium reads commands from its file 3 and writes answers and events to its file 4, each as
JSON that ends with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# WebGL 2 without a graphics card. Root, as in a container, gets no sandbox.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
)
WAIT_S = 300


class Browser:
    """Chromium with one page.

    Attributes:
        errors: errors and warnings of the console, exceptions, and what the page's policy has refused.
        requests: addresses that the page has asked for, without data in the page itself.
    """

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._events: list[dict] = []
        self._number = 0
        self._waiting = b""
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        options = " ".join([*OPTIONS, f"--user-data-dir='{profile}'"])
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec '{CHROMIUM}' {options} about:blank 3<&{commands} 4>&{answers}"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters) -> dict:
        """The answer to a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict:
        end = time.monotonic() + WAIT_S
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, f"no answer of chromium in {WAIT_S} s"
            read = os.read(self._in, 1 << 20)
            assert read, "chromium has ended"
            self._waiting += read
        text, _, self._waiting = self._waiting.partition(b"\0")
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.errors.append(" ".join(str(value.get("value")) for value in parameters["args"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)

    def open(self, page: Path) -> None:
        """Load a file and wait until all of it is there."""
        self.value("window.isLeft = true")
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=page.as_uri())
        self.until("!window.isLeft && document.readyState === 'complete'")

    def value(self, expression: str):
        """The value of an expression in the page. A promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + WAIT_S
        while not self.value(expression):
            assert time.monotonic() < end, f"not in {WAIT_S} s: {expression}"
            time.sleep(0.1)

    def press(self, key: str, code: int) -> None:
        """Press a key, such as ArrowRight (39)."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def wheel(self, x: float, y: float, by: float) -> None:
        """Turn the wheel of the mouse over a point of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def screenshot(self, file: Path | None = None) -> bytes:
        """A PNG file of what the window shows."""
        content = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        if file is not None:
            file.write_bytes(content)
        return content

    def close(self) -> None:
        """End the browser."""
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)

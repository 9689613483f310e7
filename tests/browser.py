"""A headless Chromium, driven over its DevTools pipe: real pages, keys and screenshots, without another package."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
ANSWER_S = 120
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


def chromium() -> str | None:
    """The path of an installed Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Reloaded(RuntimeError):
    """The page went away, as one that reloads itself does, while it was asked."""


class Browser:
    """One page. Raises RuntimeError for what the browser refuses, or what a script of ours throws."""

    def __init__(self) -> None:
        program = chromium()
        assert program is not None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4; the shell puts the pipes there.
        flags = " ".join((*FLAGS, f"--user-data-dir={self._folder.name}"))
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {program} {flags} about:blank 3<&{to_read} 4>&{to_write}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._answers = os.fdopen(self._from, "rb", buffering=0)
        self._left = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = next(each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page")[
            "targetId"
        ]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._to)
        self._answers.close()
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """A command to the page."""
        return self._call(method, **parameters)

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                message_of = answer["error"]["message"]
                raise (Reloaded if "navigated" in message_of else RuntimeError)(f"{method}: {message_of}")
            else:
                return answer["result"]

    def _receive(self) -> Any:
        parts = [self._left]
        while b"\0" not in parts[-1]:
            if not select.select([self._answers], [], [], ANSWER_S)[0]:
                raise TimeoutError(f"the browser gave no answer in {ANSWER_S} s")
            received = self._answers.read(1 << 20)
            if not received:
                raise RuntimeError("the browser ended")
            parts.append(received)
        message, _, self._left = b"".join(parts).partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, fragment: str = "") -> None:
        """Loads a local file and waits until it is there."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What a script of the page evaluates to."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60.0) -> None:
        """Until a script is true. Raises TimeoutError."""
        ends = time.monotonic() + seconds
        while not self._is_true(script):
            if time.monotonic() > ends:
                raise TimeoutError(script)
            time.sleep(0.02)

    def _is_true(self, script: str) -> bool:
        try:
            return bool(self.value(script))
        except Reloaded:
            return False

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """One key, by its name and its Windows virtual key code."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def look(self, width: int, is_dark: bool = False, is_print: bool = False) -> None:
        """The window's width, and the colours that the reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="print" if is_print else "screen", features=features)

    def screenshot(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """A PNG of the page, or of a part of it in its pixels."""
        width = self.value("innerWidth")
        height = height or self.value("document.documentElement.scrollHeight") - top
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """As on paper."""
        self.call("Emulation.setEmulatedMedia", media="", features=[])
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings that the page has caused: scripts that failed, or that its policy did not let run."""
        self.value("0")
        found = [
            each["params"]
            for each in self.events
            if each.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        return [json.dumps(each) for each in found]

    @property
    def requests(self) -> list[str]:
        """The addresses that pages have asked for."""
        self.value("0")
        sent = [each for each in self.events if each.get("method") == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in sent]

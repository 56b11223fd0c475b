"""A real browser, driven through the two pipes that Chromium offers for it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Enter": 13, "Escape": 27, " ": 32, "?": 191}
_TEXT = {"Enter": "\r", " ": " ", "?": "?"}


class Browser:
    """One page of a headless Chromium, and what it asked the network or a disk for."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        script = f'exec "$@" 3<&{theirs} 4>&{theirs_out}'
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(theirs, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb", 0)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(10)
        self._out.close()
        self._in.close()
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        self._out.write(json.dumps(request).encode() + b"\0")
        while True:
            *whole, self._rest = self._rest.split(b"\0")
            for at, message in enumerate(map(json.loads, whole)):
                if message.get("id") == self._number:
                    self._rest = b"\0".join([*whole[at + 1 :], self._rest])
                    assert "error" not in message, message["error"]
                    result: dict[str, Any] = message["result"]
                    return result
                self.events.append(message)
            more = self._in.read(1 << 20)
            assert more, "Chromium has ended"
            self._rest += more

    def open(self, page: Path) -> None:
        """Open a file, and wait until its script is through."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.documentElement.dataset.ready")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # in the middle of a navigation
                if self.run(f"!!({condition})"):
                    return
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"text": _TEXT[key]} if key in _TEXT else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **facts, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def requests(self) -> list[str]:
        """Return what the page has asked for, but for what is in itself."""
        self.run("0")
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["request"]["url"] for event in sent if not event["request"]["url"].startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Return the errors that the page or its policy have raised."""
        self.run("0")
        return [
            json.dumps(event["params"])
            for event in self.events
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]

    def save_picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what can be seen as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

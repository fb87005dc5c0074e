"""A headless Chromium, spoken to over pipes in its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


class Browser:
    """One page of a browser that ends with the `with` block."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()

        def connect() -> None:  # the browser reads commands at 3 and answers at 4
            read, write = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--window-size=1280,800", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, close_fds=False, preexec_fn=connect, stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self._number, self._held, self._session = 0, b"", ""

    def __enter__(self) -> "Browser":
        pages = [each for each in self.do("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        self._session = self.do("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        self.do("Page.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._write.close()
        self._read.close()

    def do(self, method: str, **given: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        self._write.write(
            json.dumps({"id": self._number, "method": method, "params": given, **session}).encode() + b"\0"
        )
        self._write.flush()
        while True:
            while b"\0" not in self._held:
                part = os.read(self._read.fileno(), 65536)
                assert part, "the browser has ended"
                self._held += part
            text, _, self._held = self._held.partition(b"\0")
            told = json.loads(text)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]

    def run(self, script: str) -> Any:
        """The value of a piece of JavaScript in the page."""
        told = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script: str) -> None:
        """Waits until it is true."""
        for _ in range(600):
            if self.run(f"!!({script})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; the page says {self.run('document.body.innerText')!r}")

    def choose(self, selector: str, file: Path) -> None:
        """Chooses a file in an input."""
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.do("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def type(self, text: str) -> None:
        """Types into what has the focus, then Enter."""
        self.do("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def picture(self, path: Path) -> None:
        """Writes what the page looks like."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

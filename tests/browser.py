"""Open a page in a headless Chromium over its own protocol: run script in it, take pictures, hear its console."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `console` holds what the page complained of: errors, exceptions, refused requests."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.console: list[str] = []
        self.requests: list[str] = []
        self.number = 0

    def __enter__(self) -> Self:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        words = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        ]
        words += ["--no-first-run", f"--user-data-dir={self.profile.name}", "about:blank"]
        self.program = subprocess.Popen([str(PROGRAM), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket = self._connect()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def _connect(self) -> ClientConnection:
        port_file = Path(self.profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not port_file.is_file() or len(port_file.read_text().splitlines()) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("Chromium did not open its port")
            time.sleep(0.1)
        import urllib.request

        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            tabs = json.load(answer)
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        return connect(address, max_size=None, proxy=None)

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.program.terminate()
        self.program.wait(20)
        self.profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        details = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(details["exceptionDetails"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.console.append(str(details["args"]))
        elif message.get("method") == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.console.append(details["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def open(self, width: int, scheme: str) -> None:
        """Load the file anew at a width in pixels, in a `light` or `dark` scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=self.file.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.run("document.readyState") != "complete" or self.run("location.protocol") != "file:":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.file} does not finish loading")
            time.sleep(0.1)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def picture(self, target: Path) -> None:
        """A PNG of the whole page."""
        taken = self.send("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        target.write_bytes(base64.b64decode(taken["data"]))

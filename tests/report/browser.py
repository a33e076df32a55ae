"""Opens a page in headless Chromium, and tells what it fetched and what is on it."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FACTS = """JSON.stringify({
  images: [...document.images].map(i => [i.complete, i.naturalWidth]),
  tables: document.querySelectorAll("table").length,
  drawings: document.querySelectorAll("svg[role=img]").length,
  scripts: document.scripts.length,
  width: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  text: document.body.innerText,
})"""


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page. urls: all that it asked for. facts: see _FACTS."""

    urls: tuple[str, ...]
    facts: dict[str, Any]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[str]:
    """Run Chromium, which reaches no host but this one; yield its debugger's address."""
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _address(folder / "DevToolsActivePort")
    finally:
        process.terminate()
        process.wait(20)


def visit(address: str, page: Path, *, width: int, dark: bool, picture: Path) -> Visit:
    """Open a page at a width, in light or dark; save a picture of all of it."""
    return asyncio.run(_visit(address, page, width, dark, picture))


def _address(port_file: Path) -> str:
    for _ in range(300):
        with contextlib.suppress(OSError, IndexError, ValueError):
            port = int(port_file.read_text(encoding="utf-8").splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                targets = json.load(answer)
            found = [t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"]
            if found:
                return str(found[0])
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start within 30 s")


class _Line:
    """A connection to the debugger: commands go out, answers and events come in."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection, self._number = connection, 0
        self.events: list[dict[str, Any]] = []

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        await self._connection.write_message(json.dumps(message))
        while True:
            found = await self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])

    async def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            await self._next()

    async def _next(self) -> dict[str, Any]:
        text = await asyncio.wait_for(self._connection.read_message(), 60)
        assert text is not None
        found = dict(json.loads(text))
        if "method" in found:
            self.events.append(found)
        return found


async def _visit(address: str, page: Path, width: int, dark: bool, picture: Path) -> Visit:
    connection = await websocket_connect(address, max_message_size=1 << 28)
    line = _Line(connection)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    for domain in ("Page", "Network"):
        await line.ask(f"{domain}.enable")
    await line.ask("Emulation.setDeviceMetricsOverride", **metrics)
    await line.ask("Emulation.setEmulatedMedia", features=[scheme])
    await line.ask("Page.navigate", url=page.as_uri())
    await line.wait_for("Page.loadEventFired")
    found = await line.ask("Runtime.evaluate", expression=_FACTS)
    shot = await line.ask("Page.captureScreenshot", captureBeyondViewport=True)
    picture.write_bytes(base64.b64decode(shot["data"]))
    connection.close()
    while await connection.read_message() is not None:  # until the other side has closed, too
        pass
    urls = tuple(
        str(event["params"]["request"]["url"])
        for event in line.events
        if event["method"] == "Network.requestWillBeSent"
    )
    return Visit(urls, dict(json.loads(found["result"]["value"])))

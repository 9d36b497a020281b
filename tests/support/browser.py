"""A headless Chromium: it opens pages, reads them, clicks and fills fields as a person does.

It is driven by its DevTools protocol, so that no package and no driver besides Chromium is needed:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.workers import eventually

#: Without a screen, without the sandbox that root cannot have, and without requests of its own.
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1280,900", "--remote-debugging-port=0"),
)
#: Seconds that Chromium may take for one answer.
TIMEOUT_SECONDS = 30.0


class Browser:
    """One tab.

    Args:
        socket: Of the tab.
        loop: Of the socket; each method runs it until the tab has answered.
    """

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._socket, self._loop, self._ids = socket, loop, count(1)

    def open(self, url: str) -> None:
        """Load a page; the text of an error page counts too."""
        self.send("Page.navigate", url=url)
        eventually(lambda: self.run("document.readyState") == "complete")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def text(self) -> str:
        """The text of the page, "" while it loads. `innerText` would break words of tables."""
        return str(self.run("document.body?.textContent ?? ''"))

    def source(self) -> str:
        """The whole page, as it is now."""
        return str(self.run("document.documentElement.outerHTML"))

    def wait_for(self, text: str) -> None:
        """Return when the page shows a text."""
        eventually(lambda: text in self.text())

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, on whatever is there."""
        element = f"document.querySelector({json.dumps(selector)})"
        eventually(lambda: self.run(f"{element} !== null"))
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._send(method, params), TIMEOUT_SECONDS)
        )

    async def _send(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (reply := await self._socket.receive_json()).get("id") != number:
            pass  # an event
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result


def show(browser: Browser, scheme: str, width: int, height: int = 900) -> None:
    """Let a browser prefer "light" or "dark", in a window of so many pixels without scroll bars."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.send("Emulation.setEmulatedMedia", features=[feature])
    browser.send("Emulation.setScrollbarsHidden", hidden=True)
    size = {"width": width, "height": height}
    browser.send("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run Chromium with one tab; skip the test where Chromium is not installed, but not in CI.

    Args:
        folder: For its profile; it must be empty.
    """
    if shutil.which("chromium") is None and "CI" not in os.environ:
        pytest.skip("chromium is not installed")
    command = ["chromium", *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with (folder.parent / "chromium.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(_session())
    try:
        port_file = folder / "DevToolsActivePort"  # the port, then a path
        eventually(lambda: port_file.exists() and port_file.read_text().count("\n"), timeout=60)
        port = port_file.read_text().splitlines()[0]
        socket = loop.run_until_complete(_connect(session, f"http://127.0.0.1:{port}"))
        yield Browser(socket, loop)
        loop.run_until_complete(socket.close())
    finally:
        loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(30)


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _connect(session: aiohttp.ClientSession, root: str) -> aiohttp.ClientWebSocketResponse:
    async with session.get(f"{root}/json/list") as reply:
        [tab] = [target for target in await reply.json() if target["type"] == "page"]
    return await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

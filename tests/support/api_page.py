"""`fleet serve` in a process of its own, and its page as the holders of keys see it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import yaml

from api.keys import new_key
from config.settings import ROOT
from tests.support.workers import eventually

#: `python -m api serve --port 0` says where it listens.
_LISTENS = re.compile(r"Uvicorn running on (http://\S+)")
_TOKEN = re.compile(r'name="token" value="([0-9a-f]+)"')
#: Keys by name, without their secrets.
KEYS: dict[str, dict[str, Any]] = {
    "caller": {},
    "reader": {"role": "reader"},
    "operator": {"role": "operator", "sees_prompts": True},
    "other-operator": {"role": "operator"},
}


@dataclass(frozen=True)
class Page:
    """The page as the holder of one key sees it; without a key, as a browser before its login."""

    url: str
    key: str | None

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        """The reply to a GET."""
        return httpx.get(self.url + path, auth=self._auth(), headers=headers, timeout=30)

    def post(self, path: str, form: Mapping[str, Any], **headers: str) -> httpx.Response:
        """The reply to a form as it is; no redirect is followed."""
        return httpx.post(
            self.url + path, data=dict(form), auth=self._auth(), headers=headers, timeout=60
        )

    def act(self, path: str, on: str = "/", **form: Any) -> httpx.Response:
        """Send a form with the token on a page, as a browser does; the page that follows."""
        site = {"origin": self.url, "sec-fetch-site": "same-origin"}
        reply = self.post(path, form | {"token": self.token(on)}, **site)
        assert reply.status_code == 303, reply.text
        return self.get(reply.headers["location"])

    def token(self, page: str = "/") -> str:
        """The token in the forms of a page."""
        found = _TOKEN.search(self.get(page).text)
        assert found, "the page has no form"
        return found[1]

    def text(self, path: str = "/") -> str:
        """What a person reads, in one line."""
        return words(self.get(path))

    def _auth(self) -> tuple[str, str] | None:
        return None if self.key is None else ("any", self.key)


def words(reply: httpx.Response) -> str:
    """The text of a page, in one line."""
    assert reply.status_code == 200, reply.text
    text = re.sub(r"<title>.*?</title>|<[^>]*>", " ", reply.text, flags=re.DOTALL)
    return " ".join(unescape(text).split())


@dataclass
class Server:
    """A running `fleet serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    #: By name.
    keys: dict[str, str]
    url: str = field(default="")

    def page(self, key: str | None) -> Page:
        """The page as the key of this name sees it."""
        return Page(self.url, None if key is None else self.keys[key])


@contextmanager
def serving(
    url: str, folder: Path, keys: Mapping[str, Mapping[str, Any]] = KEYS, **env: str
) -> Iterator[Server]:
    """Run `fleet serve` on a free port.

    Args:
        url: The fleet's Redis.
        folder: For the configuration and the log.
        keys: By name, as fleet.yaml has them, without hashes. None of them: no key is needed.
    """
    secrets = {name: new_key() for name in keys}
    entries = [
        {"name": name, "sha256": secrets[name][1], **values} for name, values in keys.items()
    ]
    shipped = Path(env.get("FLEET_CONFIG", ROOT / "config" / "fleet.yaml")).read_text()
    config = folder / "fleet-with-keys.yaml"
    config.write_text(shipped + yaml.safe_dump({"api": {"keys": entries}}))
    log = folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "serve", "--port", "0"],
            cwd=ROOT,
            env=os.environ | env | {"FLEET_REDIS_URL": url, "FLEET_CONFIG": str(config)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, log, {name: secret for name, (secret, _) in secrets.items()})

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = _LISTENS.search(log.read_text())
        return found and found[1]

    try:
        server.url = eventually(address)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()

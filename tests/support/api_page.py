"""The page of a `fleet serve` in a process of its own, as the holders of keys see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx

from api.keys import new_key
from tests.support.api_server import api_server, fleet_yaml

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


@dataclass(frozen=True)
class Server:
    """A running `fleet serve`."""

    url: str
    log: Path
    #: By name.
    keys: dict[str, str]

    def page(self, key: str | None) -> Page:
        """The page as the key of this name sees it."""
        return Page(self.url, None if key is None else self.keys[key])


@contextmanager
def serving(
    url: str, folder: Path, keys: Mapping[str, Mapping[str, Any]] = KEYS
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
    config = fleet_yaml(folder / "fleet-with-keys.yaml", keys=entries)
    with api_server(url, folder, config) as server:
        yield Server(
            server.root, server.log, {name: secret for name, (secret, _) in secrets.items()}
        )

"""`fleet serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import yaml

from api.keys import key_hash
from config.settings import ROOT
from tests.support.workers import COVERAGE_SECONDS, eventually

#: Of the tenants `alpha` and `beta`, an expired one of `alpha`, a reader's and an operator's.
ALPHA, BETA, EXPIRED, READER, OPERATOR, NARROW = (
    f"sk-fleet-{name}-0123456789abcdef"
    for name in ("alpha", "beta", "expired", "reader", "operator", "narrow")
)
KEYS: list[dict[str, Any]] = [
    {"name": "alpha", "sha256": key_hash(ALPHA), "tenant": "alpha"},
    {"name": "beta", "sha256": key_hash(BETA), "tenant": "beta"},
    {
        "name": "expired",
        "sha256": key_hash(EXPIRED),
        "tenant": "alpha",
        "expires": "2026-01-01T00:00:00Z",
    },
    {"name": "reader", "sha256": key_hash(READER), "role": "reader"},
    {"name": "operator", "sha256": key_hash(OPERATOR), "role": "operator", "sees_prompts": True},
    {
        "name": "narrow",
        "sha256": key_hash(NARROW),
        "tenant": "alpha",
        "lanes": ["realtime"],
        "models": ["gpt-4o-*"],
    },
]


@dataclass
class ApiServer:
    """A running server."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def root(self) -> str:
        """Its address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = ALPHA, **options: Any) -> openai.OpenAI:
        """The official SDK, which retries nothing."""
        options = {"max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{self.root}/v1", api_key=key, **options)


def fleet_yaml(path: Path, *, keys: list[dict[str, Any]] = KEYS, **api: Any) -> Path:
    """Write the checkout's fleet.yaml with these keys and settings of the API."""
    values = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    path.write_text(yaml.safe_dump(values | {"api": {"keys": keys, **api}}))
    return path


@contextmanager
def api_server(
    url: str, folder: Path, config: Path | None, *options: str, **env: str
) -> Iterator[ApiServer]:
    """Serve the fleet at a Redis; without a configuration, that of the checkout."""
    log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"
    variables = {"FLEET_REDIS_URL": url, **({"FLEET_CONFIG": str(config)} if config else {})}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "serve", "--port", "0", *options],
            cwd=ROOT,
            env=os.environ | variables | env,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = ApiServer(process, log)
    try:
        server.port = int(eventually(lambda: _port(server)))
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10 + COVERAGE_SECONDS)
        finally:
            process.kill()


def _port(server: ApiServer) -> str | None:
    text = server.log.read_text()
    assert server.process.poll() is None, f"the server ended: {text}"
    found = re.search(r"Uvicorn running on http://127\.0\.0\.1:(\d+)", text)
    return found and found[1]

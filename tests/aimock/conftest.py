"""Another simulated provider, not of our making: so that ours and our client share no misreading.

`make test-aimock` installs @copilotkit/aimock, of npm, and runs these tests: https://aimock.copilotkit.dev.
It has the shape of OpenAI's Files and Batch API on the wire, and none of its validation: a batch is
in progress when it is first looked at, and has ended at the second look, as the header that its
creator sent says.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from config.settings import ROOT
from scheduler.providers.openai import OpenAIBatches
from tests.integration.conftest import valkey, valkey_url
from tests.support.batch_fixture import Bench, Dialect, OpenBench, fleet_app, open_bench
from workers.onebox.simulator.app import App

__all__ = ["fleet_app", "open_bench", "valkey", "valkey_url"]

CLI = ROOT / ".aimock/node_modules/@copilotkit/aimock/dist/cli.js"
OUTCOME = "X-AIMock-Batch-Outcome"
LISTENS = "listening on "

#: Of a test that needs aimock.
on_aimock = [
    pytest.mark.aimock,
    pytest.mark.skipif(not CLI.exists(), reason="aimock is not installed: make test-aimock"),
]

AtAimock = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def aimock_url(tmp_path: Path) -> Iterator[str]:
    """The address of an aimock that knows of nothing."""
    command = ["node", str(CLI), "--port", "0", "--fixtures", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            heard = next(line for line in server.stdout if LISTENS in line)
            yield heard.partition(LISTENS)[2].strip() + "/v1"
        finally:
            server.terminate()


@pytest.fixture
def account(aimock_url: str) -> Callable[..., OpenAIBatches]:
    """`account("expired")`: the batch lane's side of an account at aimock, and how batches end."""

    def account(outcome: str = "completed") -> OpenAIBatches:
        headers = {OUTCOME: outcome}
        client = AsyncOpenAI(api_key="test-key", base_url=aimock_url, default_headers=headers)
        return OpenAIBatches(client)

    return account


@pytest.fixture
def at_aimock(opened: OpenBench, account: Callable[..., OpenAIBatches]) -> AtAimock:
    """`async with at_aimock("expired") as b:`, the batch lane at aimock; the clock is b's alone."""

    def at_aimock(outcome: str = "completed", **policy: Any) -> Any:
        return opened(dialect=Dialect(App, lambda _: account(outcome)), **policy)

    return at_aimock

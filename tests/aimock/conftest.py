"""A provider simulated by another project, so that our simulator and client share no misreading.

`make test-aimock` installs npm's @copilotkit/aimock and runs these tests: https://aimock.copilotkit.dev.
It has the wire format of OpenAI's Files and Batch API without the validation: a batch is in
progress at the first retrieve and has ended at the second. A header of the create call chooses how
it ends.
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

#: Marks of a test that needs aimock.
on_aimock = [
    pytest.mark.aimock,
    pytest.mark.skipif(not CLI.exists(), reason="aimock is not installed: make test-aimock"),
]

AtAimock = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def aimock_url(tmp_path: Path) -> Iterator[str]:
    """The address of an aimock without fixtures."""
    command = ["node", str(CLI), "--port", "0", "--fixtures", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if LISTENS in line)
            yield line.partition(LISTENS)[2].strip() + "/v1"
        finally:
            server.terminate()


@pytest.fixture
def account(aimock_url: str) -> Callable[..., OpenAIBatches]:
    """`account("expired")`: an account at aimock whose batches end so."""

    def account(outcome: str = "completed") -> OpenAIBatches:
        headers = {OUTCOME: outcome}
        client = AsyncOpenAI(api_key="test-key", base_url=aimock_url, default_headers=headers)
        return OpenAIBatches(client)

    return account


@pytest.fixture
def at_aimock(opened: OpenBench, account: Callable[..., OpenAIBatches]) -> AtAimock:
    """`async with at_aimock("expired") as b:`, the lane at aimock, which has its own clock."""

    def at_aimock(outcome: str = "completed", **policy: Any) -> Any:
        return opened(dialect=Dialect(App, lambda _: account(outcome)), **policy)

    return at_aimock

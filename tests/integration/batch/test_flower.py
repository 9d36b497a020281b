"""Flower shows a parked request although its worker has sent no event."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.batch_fixture import OpenBench, chat, fleet_app, open_bench
from tests.support.flower import ask_flower, running_flower

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures

LOGIN = "someone:secret"


async def test_a_parked_request_is_shown_with_its_model_and_no_prompt(
    opened: OpenBench, valkey_url: str, tmp_path: Path
) -> None:
    async with opened() as b:
        (result,) = await b.send(chat("a secret of acme", tenant_id="acme"))

        def page() -> str:
            with running_flower(valkey_url, tmp_path, LOGIN) as (_, url):
                return ask_flower(url, LOGIN, f"/task/{result.id}")

        shown = await asyncio.to_thread(page)
        parked = "model=gpt-4o-mini tenant=acme lane=batch: the request is parked for a batch"
        assert parked in shown
        assert 'id="task-revoke"' in shown
        assert "a secret of acme" not in shown

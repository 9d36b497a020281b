"""Redis goes back to an earlier moment of a batch's life: nothing is ordered twice, nothing lost.

A server of these tests' own is killed and starts from files that were copied before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.model.job import JobState
from scheduler.store import keys
from tests.support.batch_fixture import Bench, OpenBench, chat, fleet_app, open_bench, profile
from tests.support.redis_server import DURABLE, RedisServer, redis_server
from tests.support.server_folder import server_folder

pytestmark = pytest.mark.anyio

__all__ = ["fleet_app", "open_bench"]  # fixtures

HOUR = 3600


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    with server_folder() as (folder, options), redis_server(folder, DURABLE | options) as server:
        yield server


@pytest.fixture(scope="module")
def valkey_url(own_server: RedisServer) -> str:
    return own_server.url


async def ordered(b: Bench, server: RedisServer, copy: Path, at: JobState | None) -> list[Any]:
    """Order a batch; the server's files are copied when it is in a state, None: before its job."""
    results = await b.send(chat("a"), chat("b"))
    if at is None:
        server.save_files(copy)
    else:
        b.scheduler.store.dies_at = at
        await b.die()
        server.save_files(copy)
        b.clock.advance(31)
    await b.turn()
    assert b.batches_created() == 1
    return results


@pytest.mark.parametrize("at", [None, "PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED"])
@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended"])
async def test_a_redis_that_goes_back_after_the_order_adopts_the_batch(
    opened: OpenBench, own_server: RedisServer, tmp_path: Path, at: JobState | None, ended: bool
) -> None:
    async with opened(profile(in_progress=HOUR)) as b:
        results = await ordered(b, own_server, tmp_path / "copy", at)
        b.clock.advance(2 * HOUR if ended else 0)
        own_server.roll_back(tmp_path / "copy")
        b.scheduler = b.new_scheduler()
        await b.until_idle(60, 200)
        assert [completion.text for completion in await b.completions(results)] == [
            "Simulated answer to: a",
            "Simulated answer to: b",
        ]
        assert b.batches_created() == 1
        assert b.answered() == 2
        assert not any(map(int, b.redis.hvals(keys.RESERVED)))

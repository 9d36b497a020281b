"""How far a provider's list is scanned, and which batches are returned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from primarch_fleet import Rates
from scheduler.jobs.list_scan import MIN_DUE_FOR_SCAN, scan_lists
from scheduler.model.job import Job, JobPricing, RequestGroup
from scheduler.providers.base import (
    CLOCK_SKEW_SECONDS,
    MAX_PAGES,
    BatchPage,
    BatchProvider,
    ProviderBatch,
)

pytestmark = pytest.mark.anyio

NOW = 1_750_000_000.0


class Listing:
    """A provider that only has `list`: newest first, two batches a page."""

    def __init__(self, batches: Sequence[ProviderBatch], endless: bool = False) -> None:
        self._batches, self._endless = list(batches), endless
        self.calls = 0

    async def list(self, after: str | None) -> BatchPage:
        self.calls += 1
        ids = [batch.id for batch in self._batches]
        start = 0 if after is None or self._endless else ids.index(after) + 1
        return BatchPage(self._batches[start : start + 2], start + 2 < len(ids))


def job(batch_id: str, provider: str = "here") -> Job:
    price = Rates.model_validate({"input": "1"})
    return Job(
        intent=f"intent of {batch_id}",
        token="1",
        state="SUBMITTED",
        group=RequestGroup(provider, "/v1/embeddings", "m", "24h"),
        terms=JobPricing(deployment="d", upstream="m", price=price, list_price=price),
        requests=1,
        reason="age",
        created_at=NOW,
        since=NOW,
        batch_id=batch_id,
    )


def jobs(provider: str = "here") -> list[Job]:
    """Enough jobs for a scan; the tests list only b0 to b9."""
    return [job(f"b{n}", provider) for n in range(MIN_DUE_FOR_SCAN + 1)]


def remote(batch_id: str, status: str = "in_progress", age: float = 0.0) -> ProviderBatch:
    return ProviderBatch(batch_id, status, created_at=NOW - age)


def provider(listing: Any) -> BatchProvider:
    return cast(BatchProvider, listing)


async def test_only_live_batches_are_returned() -> None:
    statuses = ["in_progress", "validating", "finalizing", "cancelling"]
    ended = ["completed", "failed", "expired", "cancelled", "something_new"]
    here = Listing([remote(f"b{n}", status) for n, status in enumerate(statuses + ended)])
    seen = await scan_lists(jobs(), {"here": provider(here)})
    assert {key: batch.status for key, batch in seen.items()} == {
        ("here", f"b{n}"): status for n, status in enumerate(statuses)
    }


async def test_batches_of_other_jobs_are_left_out() -> None:
    here = Listing([remote("foreign"), remote("b1")])
    assert list(await scan_lists(jobs(), {"here": provider(here)})) == [("here", "b1")]


async def test_a_scan_ends_when_every_batch_was_seen() -> None:
    wanted = jobs()
    here = Listing(
        [remote(job.batch_id) for job in wanted] + [remote(f"old {n}") for n in range(9)]
    )
    assert len(await scan_lists(wanted, {"here": provider(here)})) == len(wanted)
    assert here.calls == (len(wanted) + 1) // 2


async def test_a_scan_ends_with_a_page_older_than_the_first_batch() -> None:
    old = [remote(f"old {n}", age=2 * CLOCK_SKEW_SECONDS + n) for n in range(9)]
    here = Listing([remote("b0"), *old])
    assert list(await scan_lists(jobs(), {"here": provider(here)})) == [("here", "b0")]
    assert here.calls == 2


async def test_a_scan_ends_when_the_server_repeats_a_page() -> None:
    here = Listing([remote(f"b{n}") for n in range(9)], endless=True)
    assert set(await scan_lists(jobs(), {"here": provider(here)})) == {
        ("here", "b0"),
        ("here", "b1"),
    }
    assert here.calls == 2


async def test_a_scan_ends_after_max_pages() -> None:
    here = Listing([remote(f"foreign {n}") for n in range(10_000)])
    assert await scan_lists(jobs(), {"here": provider(here)}) == {}
    assert here.calls == MAX_PAGES <= MIN_DUE_FOR_SCAN


async def test_each_provider_with_many_batches_is_scanned() -> None:
    here, there = Listing([remote("b0")]), Listing([remote("b0"), remote("b1")])
    few = Listing([remote("b0")])
    accounts = {"here": provider(here), "there": provider(there), "few": provider(few)}
    seen = await scan_lists([*jobs(), *jobs("there"), *jobs("few")[:MIN_DUE_FOR_SCAN]], accounts)
    assert set(seen) == {("here", "b0"), ("there", "b0"), ("there", "b1")}
    assert (here.calls, there.calls, few.calls) == (1, 1, 0)


async def test_a_provider_that_is_not_configured_is_not_scanned() -> None:
    assert await scan_lists(jobs("gone"), {}) == {}


async def test_a_scan_times_out(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class Hanging:
        async def list(self, after: str | None) -> BatchPage:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr("scheduler.jobs.list_scan.TIMEOUT_SECONDS", 0.0)
    assert await scan_lists(jobs(), {"here": provider(Hanging())}) == {}
    assert [getattr(record, "action", "") for record in caplog.records] == [
        "batch_list_scan_failed"
    ]


async def test_a_list_that_cannot_be_decoded_counts_as_empty(caplog: Any) -> None:
    class Broken:
        async def list(self, after: str | None) -> BatchPage:
            raise TypeError("'NoneType' object is not iterable")

    there = Listing([remote("b0")])
    accounts = {"here": provider(Broken()), "there": provider(there)}
    assert list(await scan_lists([*jobs(), *jobs("there")], accounts)) == [("there", "b0")]
    assert [getattr(record, "action", "") for record in caplog.records] == [
        "batch_list_scan_failed"
    ]

"""The account, on journals that are written here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.mixed.account import IN_FLIGHT_SECONDS, Account, Events, Rest
from tests.chaos.mixed.journal import Journal

NOTHING = Rest(
    leases=0,
    reserved_nanousd=0,
    reserved_for=[],
    spent_nanousd=0,
    dead_letters=0,
    waiting=0,
    parked=0,
    follow_ups=Counter(),
)
Write = Callable[..., None]


class Journals:
    """The journals of a run with one request, `p-1`."""

    def __init__(self, folder: Path, kind: str = "keyed", lane: str = "realtime") -> None:
        self._folder = folder
        self.producer("intent", kind=kind, lane=lane)

    def producer(self, event: str, **fields: Any) -> None:
        self._write("producer-p", event, **({"marker": "p-1"} | fields))

    def provider(self, event: str, **fields: Any) -> None:
        self._write("provider", event, **({"marker": "p-1"} | fields))

    def deliver(self, **fields: Any) -> None:
        self._write("workers", "received", key="k", **fields)

    def harness(self, event: str, **fields: Any) -> None:
        self._write("harness", event, **fields)

    def account(self, rest: Rest = NOTHING, final: str | None = None) -> Account:
        events = Events(self._folder)
        events.requests["p-1"].final = final
        return Account(events, rest)

    def _write(self, file: str, event: str, /, **fields: Any) -> None:
        Journal(self._folder / f"{file}.jsonl").write(event, **fields)


def test_a_request_without_an_outcome_is_lost(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.producer("sent", id="i")
    assert list(journals.account().problems()) == ["lost"]
    assert journals.account(final="ok").lost() == []
    journals.producer("outcome", id="i", outcome="ProviderError")
    assert journals.account().problems() == {}


def test_a_submit_that_redis_forgot_is_not_lost(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.producer("sent", id="i")
    journals.harness("rolled_back", since=0)
    account = journals.account()
    assert (account.lost(), len(account.forgotten())) == ([], 1)


def test_an_unsure_submit_is_neither_sent_nor_lost(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.producer("unsure")
    account = journals.account()
    assert (account.sent, account.unsure, account.problems()) == ([], 1, {})


@pytest.mark.parametrize(
    ("kind", "problem"), [("realtime", None), ("batch", "lines of batches paid twice")]
)
def test_a_line_of_a_batch_is_paid_once(tmp_path: Path, kind: str, problem: str | None) -> None:
    journals = Journals(tmp_path)
    for answer in ("a", "b"):
        journals.provider("charged", id=answer, nano=7, kind=kind)
    account = journals.account()
    assert list(account.problems()) == [problem] * bool(problem)
    assert account.repeated_calls() == ((1, 7) if kind == "realtime" else (0, 0))


@pytest.mark.parametrize("started", ["before", "after"])
def test_a_cancelled_request_never_starts(tmp_path: Path, started: str) -> None:
    journals = Journals(tmp_path, "cancel")
    journals.producer("sent", id="i")
    if started == "before":
        journals.provider("call", key="k")
    journals.producer("cancelled", id="i", value=True)
    if started == "after":
        journals.provider("ordered", markers=["p-1"])
    wrong = journals.account(final="Cancelled").run_after_cancel()
    assert [one.marker for one in wrong] == ["p-1"] * (started == "after")
    assert journals.account(final="ok").run_after_cancel()


@pytest.mark.parametrize("late_seconds", [IN_FLIGHT_SECONDS / 2, 2 * IN_FLIGHT_SECONDS])
def test_a_call_may_be_on_its_way_when_its_request_is_cancelled(
    tmp_path: Path, late_seconds: float
) -> None:
    journals, at = Journals(tmp_path, "cancel"), time.monotonic()
    journals.producer("sent", id="i")
    journals.producer("cancelled", id="i", value=True, at=at)
    journals.provider("call", key="k", at=at + late_seconds)
    wrong = journals.account(final="Cancelled").run_after_cancel()
    assert bool(wrong) == (late_seconds > IN_FLIGHT_SECONDS)


@pytest.mark.parametrize(("outcome", "name"), [("ok", "linked"), ("ProviderError", "failed")])
@pytest.mark.parametrize(
    ("sent_and_runs", "expected"),
    [
        ((0, 1), (True, 0)),
        ((1, 1), (False, 0)),
        ((2, 1), (True, 1)),
        ((2, 2), (False, 1)),
        ((1, 2), (False, 0)),
    ],
)
def test_a_follow_up_is_sent_once_for_each_run_or_delivery_at_most_and_never_lost(
    tmp_path: Path,
    outcome: str,
    name: str,
    sent_and_runs: tuple[int, int],
    expected: tuple[bool, int],
) -> None:
    sent, runs = sent_and_runs
    journals = Journals(tmp_path, "link")
    journals.producer("sent", id="i")
    for _ in range(runs if outcome == "ok" else 1):
        journals.provider("call", key="k")
    for _ in range(runs):
        journals.deliver(id="i")
    journals.producer("outcome", id="i", outcome=outcome)
    found = Counter({(f"chaos.{name}", "p-1"): sent})
    account = journals.account(Rest(**{**vars(NOTHING), "follow_ups": found}))
    assert (bool(account.wrong_follow_ups()), account.repeated_follow_ups()) == expected


def test_the_body_of_a_chord_is_sent_once_however_often_its_parts_run(tmp_path: Path) -> None:
    journals = Journals(tmp_path, "chord")
    journals.producer("sent", marker="p-1-realtime", id="i")
    for _ in range(2):
        journals.provider("call", marker="p-1-realtime", key="k")
    journals.producer("outcome", marker="p-1-realtime", id="i", outcome="ok")
    for sent in (1, 2):
        found = Counter({("chaos.joined", "p-1"): sent})
        account = journals.account(Rest(**{**vars(NOTHING), "follow_ups": found}))
        assert len(account.wrong_follow_ups()) == sent - 1


def test_a_receipt_is_the_charge_of_its_answer(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.producer("sent", id="i")
    journals.provider("charged", id="a", nano=7, kind="realtime")
    account = journals.account(final="ok")
    (one,) = account.sent
    one.answer_id, one.receipt_nanousd = "a", 7
    assert account.problems() == {}
    one.receipt_nanousd = 8
    assert list(account.problems()) == ["receipts that are not the charge"]


# Redeliveries: local1.1 has the request and is killed at 0, local2.2 starts it at 20.


class Redelivered(Journals):
    """The journals of a request that is redelivered after 20 s, with times from the kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, lane="local")
        self._start = time.monotonic()
        self.harness("killed", key="local1.1")
        for at, key in [(-1, "local1.1"), (20, "local2.2")]:
            self.provider("call", key=key, at=self._start + at)
        self.worker("ready", "local1.2", 4)
        self.worker("ready", "local2.1", -9)
        self.worker("ready", "realtime1.1", -9)

    def worker(self, event: str, key: str, at: float, **fields: Any) -> None:
        self._write("workers", event, key=key, at=self._start + at, **fields)

    def strike(self, event: str, key: str, at: float) -> None:
        self.harness(event, key=key, at=self._start + at)

    def fault(self, name: str, first: float, last: float) -> None:
        times = {"started": self._start + first, "at": self._start + last}
        self.harness("fault", name=name, target="", **times)

    def seconds(self) -> tuple[int, int, int]:
        """All seconds, those without outages, and those while a worker of the lane could serve."""
        found = self.account().redeliveries()
        ((all_,), (without,), served) = (
            found.seconds(),
            found.without_outages(),
            found.while_served(),
        )
        return round(all_), round(without), round(served[0]) if served else -1


def test_a_redelivery_is_timed_from_the_kill_of_the_process_that_ran_the_request(
    tmp_path: Path,
) -> None:
    journals = Redelivered(tmp_path)
    assert journals.seconds() == (20, 20, 20)
    journals.strike("killed", "local2.1", 3)
    assert journals.seconds() == (20, 20, 20), "another process had the request"


def test_each_moment_of_an_outage_of_redis_counts_once(tmp_path: Path) -> None:
    journals = Redelivered(tmp_path)
    journals.fault("SIGSTOP of Redis, then SIGCONT", -2, 4)
    journals.fault("Redis out of memory (maxmemory)", 2, 6)
    journals.fault("SIGSTOP of a process, then SIGCONT", 0, 20)
    journals.fault("SIGKILL of Redis, then its start", 18, 40)
    assert journals.seconds() == (20, 12, 12)


@pytest.mark.parametrize(
    ("strikes", "served"),
    [
        ([], 20),
        ([("killed", "local2.1", 1)], 20),  # local1.2 is ready before the lease expires
        ([("killed", "local1.2", 8)], 20),  # local2.1 serves
        ([("killed", "local2.1", 1), ("killed", "local1.2", 8)], 8),
        ([("killed", "local2.1", 1), ("terminated", "local1.2", 8)], 8),
        ([("exit", "local2.1", 1), ("exit", "local1.2", 4.5)], 5),
        # Before the lease expires, no worker is needed.
        (
            [
                ("stopped", "local2.1", 0),
                ("stopped", "local1.2", 4.5),
                ("continued", "local1.2", 5),
            ],
            20,
        ),
        (
            [("stopped", "local2.1", 0), ("stopped", "local1.2", 9), ("continued", "local1.2", 12)],
            17,
        ),
        ([("stopped", "local1.2", 9), ("continued", "local1.2", 12)], 20),
    ],
)
def test_seconds_without_a_worker_that_could_serve_do_not_count_once_the_lease_has_expired(
    tmp_path: Path, strikes: list[tuple[str, str, float]], served: int
) -> None:
    journals = Redelivered(tmp_path)
    for strike in strikes:
        journals.strike(*strike)
    assert journals.seconds() == (20, 20, served)


def test_the_network_separates_the_second_process_of_each_role(tmp_path: Path) -> None:
    journals = Redelivered(tmp_path)
    journals.fault("network silent, connections open", 7, 11)
    assert journals.seconds() == (20, 20, 20)
    journals.strike("killed", "local1.2", 4.5)
    assert journals.seconds() == (20, 20, 16)


def test_a_lease_expires_later_by_the_outages_that_it_met(tmp_path: Path) -> None:
    journals = Redelivered(tmp_path)
    journals.fault("SIGSTOP of Redis, then SIGCONT", 2, 5)
    journals.fault("SIGKILL of Redis, then its start", 7, 8)  # so it expires at 9
    for key in ("local1.2", "local2.1"):
        journals.strike("stopped", key, 4.5)
        journals.strike("continued", key, 11)
    assert journals.seconds() == (20, 16, 14)


@pytest.mark.parametrize("event", ["killed", "stopped"])
def test_a_process_that_a_fault_strikes_before_it_starts_the_request_begins_another_redelivery(
    tmp_path: Path, event: str
) -> None:
    journals = Redelivered(tmp_path)
    journals.producer("sent", id="i")
    journals.worker("received", "local2.1", 6, id="i")
    journals.strike(event, "local2.1", 7)
    assert journals.seconds() == (20, 20, 13)


def test_a_request_that_redis_forgot_was_not_redelivered_by_the_fleet(tmp_path: Path) -> None:
    journals = Redelivered(tmp_path)
    journals.producer("sent", id="i")
    journals.harness("rolled_back", since=0)
    assert journals.seconds() == (20, 20, -1)


def test_an_end_that_no_signal_explains_is_a_problem(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.harness("exit", role="batch", expected=True, status=-9)
    assert journals.account().problems() == {}
    journals.harness("exit", role="batch", expected=False, status=1)
    assert list(journals.account().problems()) == ["unexpected ends of processes"]

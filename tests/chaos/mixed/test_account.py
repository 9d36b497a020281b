"""The account, on journals that are written here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.mixed.account import Account, Events, Rest
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
        self._write("producer-p", event, marker="p-1", **fields)

    def provider(self, event: str, **fields: Any) -> None:
        self._write("provider", event, **({"marker": "p-1"} | fields))

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
def test_a_link_is_sent_once_for_each_run_at_most_and_never_lost(
    tmp_path: Path,
    outcome: str,
    name: str,
    sent_and_runs: tuple[int, int],
    expected: tuple[bool, int],
) -> None:
    sent, runs = sent_and_runs
    journals = Journals(tmp_path, "link")
    journals.producer("sent", id="i")
    for _ in range(runs):
        journals.provider("call", key="k")
    journals.producer("outcome", id="i", outcome=outcome)
    found = Counter({(f"chaos.{name}", "p-1"): sent})
    account = journals.account(Rest(**{**vars(NOTHING), "follow_ups": found}))
    assert (bool(account.wrong_follow_ups()), account.repeated_follow_ups()) == expected


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


def test_redelivery_is_timed_from_the_kill_of_the_process_that_ran_the_request(
    tmp_path: Path,
) -> None:
    journals = Journals(tmp_path)
    journals.provider("call", key="worker1.1")
    journals.harness("killed", key="worker2.1")
    journals.harness("killed", key="worker1.1")
    journals.provider("call", key="worker2.2")
    account = journals.account()
    (seconds,) = account.redelivery_seconds(outages=True)
    assert account.redelivery_seconds(outages=False) == [seconds]
    assert 0 < seconds < 5


def test_the_redelivery_without_outages_counts_each_moment_of_them_once(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    start = time.monotonic()
    journals.provider("call", key="worker1.1")
    journals.harness("killed", key="worker1.1")
    for name, first, last in [
        ("SIGSTOP of Redis, then SIGCONT", -10, 20),
        ("Redis out of memory (maxmemory)", 10, 30),
        ("SIGSTOP of a process, then SIGCONT", 0, 100),
        ("SIGKILL of Redis, then its start", 90, 200),
    ]:
        journals.harness("fault", name=name, target="", started=start + first, at=start + last)
    journals.provider("call", key="worker2.1", at=start + 100)
    (seconds,) = journals.account().redelivery_seconds(outages=False)
    assert abs(seconds - 60) < 1


def test_an_end_that_no_signal_explains_is_a_problem(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.harness("exit", role="batch", expected=True, status=-9)
    assert journals.account().problems() == {}
    journals.harness("exit", role="batch", expected=False, status=1)
    assert list(journals.account().problems()) == ["unexpected ends of processes"]

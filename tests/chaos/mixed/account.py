"""The account of a run: what was promised, what happened, and what was billed."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.mixed.journal import Event, read
from tests.chaos.mixed.redelivery import Redeliveries, Redelivery
from tests.chaos.mixed.serving import Serving, when
from tests.chaos.mixed.workload import KINDS

CANCELLED = "Cancelled"
#: Seconds before the copy of Redis's files and after its end that count as rolled back too: a
#: reply was on its way.
ROLL_BACK_MARGIN = 0.5
#: Seconds after which the provider may write down a call that was sent before. It was up to 0.07 on
#: two busy cores, with the times of the workers' own sends beside it. The next worker would repeat
#: a request after the visibility timeout, which is 5.
IN_FLIGHT_SECONDS = 0.25
#: The follow-ups of each kind: their name, and whether they are sent after a success.
FOLLOW_UPS = (
    ("link", "chaos.linked", True),
    ("link", "chaos.failed", False),
    ("chain", "chaos.chained", True),
    ("chord", "chaos.joined", True),
)


@dataclass
class Request:
    """One request, as its producer and the provider saw it."""

    marker: str
    kind: str
    lane: str
    #: When its producer began to send it.
    asked_at: float = 0.0
    #: When its message was first known to be in the broker; None: unsure.
    sent_at: float | None = None
    task_id: str | None = None
    #: When `cancel` returned True.
    cancelled_at: float | None = None
    #: The outcome that its producer got first, and the stored outcome at the end.
    seen: str | None = None
    seen_at: float = math.inf
    final: str | None = None
    text: str = ""
    #: Its answer's id at the provider and its price on the receipt, in nano-dollars.
    answer_id: str | None = None
    receipt_nanousd: int | None = None
    #: (time, key of the process) of each call, and (id, nano-dollars, kind) of each charge.
    calls: list[tuple[float, str]] = field(default_factory=list)
    charges: list[tuple[str, int, str]] = field(default_factory=list)
    #: (time, key of the process) of each delivery of its message.
    received: list[tuple[float, str]] = field(default_factory=list)
    #: When batches with it were ordered.
    ordered: list[float] = field(default_factory=list)
    streamed: tuple[bool, bool, str] | None = None

    @property
    def outcome(self) -> str | None:
        """What became of it."""
        return self.final or self.seen

    def __str__(self) -> str:
        calls = ", ".join(f"{key} at {at:.1f}" for at, key in sorted(self.calls))
        ordered = ", ".join(f"{at:.1f}" for at in self.ordered)
        sent, cancelled = f"{self.sent_at or 0:.1f}", f"{self.cancelled_at or 0:.1f}"
        return (
            f"{self.marker} ({self.kind}, {self.lane}, {self.task_id}): {self.seen}/{self.final} "
            f"{self.text[:60]!r}, sent {sent}, cancelled {cancelled}, ordered [{ordered}], "
            f"calls [{calls}], charges {self.charges}"
        )


class Events:
    """All journals of a run, as requests."""

    def __init__(self, folder: Path) -> None:
        #: By marker; the requests that wait for the fleet's start are of the order "start".
        self.requests = {"start": Request("start", "start", "")}
        self.harness = list(read(folder / "harness.jsonl"))
        for path in sorted(folder.glob("producer-*.jsonl")):
            for event in read(path):
                self._of_producer(event)
        for name in ("provider", "engine"):
            for event in read(folder / f"{name}.jsonl"):
                self._of_provider(event)
        self.workers = list(read(folder / "workers.jsonl"))
        by_id = {one.task_id: one for one in self.requests.values() if one.task_id}
        for event in self.workers:
            if event["event"] == "received" and event["id"] in by_id:
                by_id[event["id"]].received.append((event["at"], event["key"]))

    def _request(self, marker: str) -> Request:
        if marker not in self.requests:  # a part of a chord, whose lane ends its marker
            whole, _, lane = marker.rpartition("-")
            order = self.requests[whole]
            self.requests[marker] = Request(marker, order.kind, lane, order.asked_at)
        return self.requests[marker]

    def _of_producer(self, event: Event) -> None:
        marker = event["marker"]
        if event["event"] == "intent":
            self.requests[marker] = Request(marker, event["kind"], event["lane"], event["at"])
            return
        request = self._request(marker)
        match event["event"]:
            case "sent":
                request.sent_at = request.sent_at or event["at"]
                request.task_id = event["id"]
            case "cancelled" if event["value"]:
                request.cancelled_at = event["at"]
            case "outcome" if request.seen is None:
                request.seen, request.text = event["outcome"], event.get("text", "")
                request.seen_at = event["at"]
            case "stream":
                request.streamed = (event["ended"], event["whole"], event["text"])

    def _of_provider(self, event: Event) -> None:
        if event["event"] == "ordered":
            for marker in event["markers"]:
                self._request(marker).ordered.append(event["at"])
        elif event["event"] == "call":
            self._request(event["marker"]).calls.append((event["at"], event["key"]))
        elif event["event"] == "charged":
            charge = event["id"], event["nano"], event["kind"]
            self._request(event["marker"]).charges.append(charge)


@dataclass(frozen=True)
class Rest:
    """What is left in Redis at the end."""

    leases: int
    reserved_nanousd: int
    #: Ids of the requests that it is reserved for.
    reserved_for: list[str]
    spent_nanousd: int
    dead_letters: int
    #: Messages in queues, and requests on the batch lane.
    waiting: int
    parked: int
    #: (name, marker) of each follow-up.
    follow_ups: Counter[tuple[str, str]]


class Account:
    """Compares the events of a run with what is left."""

    def __init__(self, events: Events, rest: Rest) -> None:
        self._events, self.rest = events, rest
        self.requests = list(events.requests.values())
        self._rolled_back = [
            (event["since"] - ROLL_BACK_MARGIN, event["at"] + ROLL_BACK_MARGIN)
            for event in events.harness
            if event["event"] == "rolled_back"
        ]

    def met_roll_back(self, one: Request) -> bool:
        """Whether Redis went back during the life of a request, whose messages it then repeats."""
        return any(
            one.asked_at <= last and one.seen_at >= first for first, last in self._rolled_back
        )

    def _is_forgotten(self, one: Request) -> bool:
        """Whether Redis went back while a request was sent: it may have forgotten a part of it."""
        sent = one.sent_at or 0.0
        return any(one.asked_at <= last and sent >= first for first, last in self._rolled_back)

    @property
    def sent(self) -> list[Request]:
        """Requests that were surely sent; a chord counts as its parts."""
        return [one for one in self.requests if one.sent_at is not None]

    @property
    def unsure(self) -> int:
        """Requests without a key whose submit got no answer, or whose producer was killed."""
        unsent = [one for one in self.requests if one.sent_at is None]
        return sum(one.kind not in ("chord", "start") for one in unsent)

    def is_open(self) -> bool:
        """Whether more time may change the account."""
        rest = self.rest
        left = rest.leases or rest.reserved_nanousd or rest.waiting or rest.parked
        return bool(left or self.lost())

    def outcomes(self) -> Counter[str]:
        """Count the outcomes of what was sent."""
        return Counter(one.outcome or "none" for one in self.sent)

    def lost(self) -> list[Request]:
        """Requests without an outcome, although Redis never forgot their submit."""
        return [one for one in self.sent if one.outcome is None and not self._is_forgotten(one)]

    def forgotten(self) -> list[Request]:
        """Requests without an outcome whose submit was rolled back."""
        return [one for one in self.sent if one.outcome is None and self._is_forgotten(one)]

    def ordered_lines(self) -> int:
        """How many requests were ordered in batches."""
        return sum(bool(one.ordered) for one in self.requests)

    def ordered_twice(self) -> list[Request]:
        """Lines of batches that were paid more than once."""
        return [
            one for one in self.requests if sum(kind == "batch" for *_, kind in one.charges) > 1
        ]

    def run_after_cancel(self) -> list[Request]:
        """Requests that started after `cancel` had returned True, or then had another outcome.

        A call counts if it arrives later than what was on its way then.
        """
        found = []
        for one in self.requests:
            if one.cancelled_at is None or self.met_roll_back(one):
                continue
            starts = [at - IN_FLIGHT_SECONDS for at, _ in one.calls] + one.ordered
            if one.outcome != CANCELLED or any(at > one.cancelled_at for at in starts):
                found.append(one)
        return found

    def changed(self) -> list[Request]:
        """Requests whose stored outcome is not the outcome that their producer was given."""
        return [
            one
            for one in self.sent
            if one.seen and one.final and one.seen != one.final and not self._rolled_back
        ]

    def follow_ups(self) -> Iterator[tuple[str, int, int, int]]:
        """Yield of each follow-up its name and request, and how often: expected, sent, at most.

        At most as often as its request began to run: a worker that dies after it has sent the
        follow-up, and before it has stored the result, leaves both to the next worker. Errbacks are
        sent after that, so they may be sent with each delivery. The body of a chord is sent once,
        however often its parts run.
        """
        parts: defaultdict[str, list[Request]] = defaultdict(list)
        for one in self.sent:
            parts[one.marker.rpartition("-")[0] if one.kind == "chord" else one.marker].append(one)
        for marker, ones in parts.items():
            if any(one.outcome is None or self.met_roll_back(one) for one in ones):
                continue
            success = all(one.outcome == "ok" for one in ones)
            for kind, name, by_success in FOLLOW_UPS:
                if kind == ones[0].kind:
                    runs = max(len(one.calls if by_success else one.received) for one in ones)
                    expected, most = int(success is by_success), 1 if kind == "chord" else runs
                    yield f"{name} of {marker}", expected, self.rest.follow_ups[name, marker], most

    def repeated_follow_ups(self) -> int:
        """How many follow-ups were sent more than once."""
        return sum(sent > expected for _, expected, sent, _ in self.follow_ups())

    def wrong_follow_ups(self) -> list[str]:
        """Follow-ups that were lost, or sent more often than their requests ran."""
        return [
            f"{name}: {sent} times, not {expected}"
            for name, expected, sent, most in self.follow_ups()
            if sent < expected or (sent > expected and (not expected or sent > most))
        ]

    def streams(self) -> Counter[str]:
        """Count how streams ended for their readers."""
        return Counter(
            "whole" if whole else "other text" if ended else text
            for ended, whole, text in (one.streamed for one in self.sent if one.streamed)
        )

    def repeated_calls(self) -> tuple[int, int]:
        """How many answers were paid more than once in real time, and the nano-dollars of it."""
        more = [
            charges[1:]
            for one in self.requests
            if len(charges := [charge for charge in one.charges if charge[2] == "realtime"]) > 1
        ]
        return len(more), sum(nano for charges in more for _, nano, _ in charges)

    def wrong_receipts(self) -> list[Request]:
        """Answers whose receipt is not their charge."""
        wrong = []
        for one in self.sent:
            if one.receipt_nanousd is not None and one.lane != "local":
                charges = {answer: nano for answer, nano, _ in one.charges}
                if charges.get(one.answer_id or "") != one.receipt_nanousd:
                    wrong.append(one)
        return wrong

    def redeliveries(self) -> Redeliveries:
        """Return how messages of killed processes came to their next start."""
        kills = when(self._events.harness, "killed")
        redeliveries = [
            Redelivery(first, kills[first], second, one.received, self._is_forgotten(one))
            for one in self.requests
            for (at, first), (second, _) in itertools.pairwise(sorted(one.calls))
            if at < kills.get(first, 0) < second
        ]
        return Redeliveries(redeliveries, Serving(self._events.harness, self._events.workers))

    def by_fault(self) -> dict[str, tuple[int, int, int]]:
        """By the name of a fault: how often it struck, requests under way then, those lost."""
        struck = [event for event in self._events.harness if event["event"] == "fault"]
        lost = {one.marker for one in self.lost()}
        found = {}
        for name in sorted({event["name"] for event in struck}):
            times = [(event["started"], event["at"]) for event in struck if event["name"] == name]
            met = {
                one.marker
                for one in self.sent
                if any((one.sent_at or 0) < end and one.seen_at > start for start, end in times)
            }
            found[name] = (len(times), len(met), len(met & lost))
        return found

    def unexpected_exits(self) -> list[Event]:
        """Ends of processes that no signal of ours explains."""
        exits = [event for event in self._events.harness if event["event"] == "exit"]
        return [event for event in exits if not event["expected"]]

    def _left_reserved(self) -> list[Any]:
        """Requests, or ids of unsure requests, that money is still reserved for."""
        known = {one.task_id: one for one in self.requests if one.task_id}
        return [known.get(task_id, task_id) for task_id in self.rest.reserved_for]

    def problems(self) -> dict[str, list[str]]:
        """What must not be, with examples; empty if all promises were kept."""
        found: dict[str, Iterable[Any]] = {
            "lost": self.lost(),
            "lines of batches paid twice": self.ordered_twice(),
            "run after cancel": self.run_after_cancel(),
            "outcome changed": self.changed(),
            "follow-ups lost or repeated": self.wrong_follow_ups(),
            "receipts that are not the charge": self.wrong_receipts(),
            "unexpected ends of processes": map(json.dumps, self.unexpected_exits()),
            "left reserved": self._left_reserved(),
            "leases": [str(self.rest.leases)] * bool(self.rest.leases),
            "messages waiting": [str(self.rest.waiting)] * bool(self.rest.waiting),
            "requests parked": [str(self.rest.parked)] * bool(self.rest.parked),
        }
        return {name: texts for name, items in found.items() if (texts := [str(i) for i in items])}


def kinds_of(requests: Iterable[Request]) -> Counter[str]:
    """Count requests by kind, in the order of KINDS."""
    counts = Counter(one.kind for one in requests)
    return Counter({kind: counts[kind] for kind in KINDS if counts[kind]})

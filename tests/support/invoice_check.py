"""Runs a mixed load on running workers, and compares the fleet's accounts with the invoices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import redis

from primarch_fleet import CompletionRequest, Fleet, Ticket, errors
from primarch_fleet.contract import Receipt
from primarch_fleet.requests import Request
from tests.support.mixed_load import (
    FAILING,
    LATE,
    LATE_SECONDS,
    LOCAL,
    MODELS,
    TIGHT,
    UNANSWERED,
    answered_requests,
)
from tests.support.workers import eventually
from workers.observability.cost_recorder import ESTIMATED, parse_day
from workers.onebox.simulator.prompt import measure
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

#: Chunks that a reader takes before it cancels its stream.
READ_CHUNKS = 40
#: Requests of the tenant whose budget does not suffice for them.
TIGHT_REQUESTS = 12
#: Calls of a request that times out until its end: the first and two retries.
LATE_CALLS = 3
SETTLE_SECONDS = 30.0


@dataclass(frozen=True)
class Account:
    """What the fleet counted and what the providers billed, in nano-dollars."""

    #: How many requests were answered, by lane, and how many attempts were refused before.
    answered: Mapping[str, int]
    refused_attempts: int
    #: The receipts of answers from providers, and the invoices for them.
    receipts: int
    invoices: int
    #: The calls without an answer: how many, by estimate, as billed, and their prompts alone.
    unanswered: int
    estimates: int
    billed: int
    prompts: int
    #: The budget: what is spent, what is still reserved, and what the receipts say.
    spent: int
    reserved: int
    all_receipts: int
    #: The cost report by provider.
    reported: Mapping[str, int]
    #: The small budget: what is spent of it, and the requests that it refused.
    small_spent: int
    small_budget: int
    small_refused: int

    def problems(self) -> list[str]:
        """Return what does not agree; nothing if every account is right."""
        rules = {
            "the receipts are not the invoices": self.receipts == self.invoices > 0,
            "an estimate is below the prompts": self.estimates >= self.prompts > 0,
            "the budget is not receipts and estimates": self.spent
            == self.all_receipts + self.estimates,
            "something is still reserved": self.reserved == 0,
            "the report is not the budgets": sum(self.reported.values())
            == self.spent + self.small_spent,
            "the small budget is exceeded": self.small_spent <= self.small_budget,
            "the small budget refused nothing": self.small_refused > 0,
        }
        return [problem for problem, holds in rules.items() if not holds]

    def __str__(self) -> str:
        lanes = ", ".join(f"{number} {lane}" for lane, number in sorted(self.answered.items()))
        distance = self.estimates / self.billed - 1
        return "\n".join(
            [
                f"    answered: {sum(self.answered.values())} requests ({lanes}), "
                f"{self.refused_attempts} attempts refused before",
                f"    receipts: {_usd(self.receipts)}",
                f"    invoices: {_usd(self.invoices)}",
                f"  unanswered: {self.unanswered} calls, their prompts {_usd(self.prompts)}",
                f"   estimates: {_usd(self.estimates)}",
                f"    invoices: {_usd(self.billed)}, so the estimates are {distance:+.1%} off",
                f"      budget: {_usd(self.spent)}, {self.reserved} reserved",
                f"small budget: {_usd(self.small_spent)} of {_usd(self.small_budget)}, "
                f"{self.small_refused} requests refused",
            ]
        )


class InvoiceCheck:
    """A mixed load on running workers.

    Args:
        store: A client of the same Redis, with `decode_responses`.
        timeout: Seconds for everything to be answered.
    """

    def __init__(
        self, fleet: Fleet, store: redis.Redis, providers: Mapping[str, Simulator], timeout: float
    ) -> None:
        self._fleet, self._store, self._timeout = fleet, store, timeout
        self._providers = providers

    def run(self, count: int, seed: int) -> Account:
        """Send the load, wait for its results and return the accounts.

        Args:
            count: Requests that are answered. There are one in a hundred more, but at least three,
                of each kind of FAILING.
        """
        failing = {
            kind.name: [kind.request(kind.name, number) for number in range(max(3, count // 100))]
            for kind in FAILING
        }
        failing["late once"] = [
            LATE.request(f"late once {number}", number) for number in range(len(failing["late"]))
        ]
        for number in range(len(failing["late"])):
            once = Script(contains=f"<late once {number}>", delay=LATE_SECONDS, times=1)
            self._providers["openai"].script(once)
        others = [one for name, requests in failing.items() if name != "cut" for one in requests]
        tickets = self._fleet.submit_many([*answered_requests(count, seed), *others])
        with ThreadPoolExecutor(10) as readers:
            list(readers.map(self._read_and_cancel, failing["cut"]))
        eventually(lambda: self._all_done(tickets), self._timeout)
        receipts = [one for ticket in tickets if (one := self._receipt(ticket)) is not None]
        small_refused = self._spend_the_small_budget()
        eventually(lambda: self._spent() and self._reported_all(), SETTLE_SECONDS)
        return self._account(receipts, failing, small_refused)

    def _account(
        self, receipts: list[Receipt], failing: Mapping[str, list[Request]], small_refused: int
    ) -> Account:
        month, small = self._fleet.budget("default").month, self._fleet.budget("tight").day
        invoices = Counter[str]()
        for simulator in self._providers.values():
            invoices.update(simulator.invoice()["by_model_nanousd"])
        late = [one for one in receipts if one.requested_model == "late"]
        billed = invoices.pop(UNANSWERED) - _sum(late)
        paid = [one for one in receipts if one.requested_model not in ("late", LOCAL)]
        attempts = [attempt for one in receipts for attempt in one.failed_attempts]
        timeouts = [attempt for attempt in attempts if attempt.estimated]
        unanswered = [*LATE_CALLS * failing["late"], *failing["broken"], *failing["cut"]]
        unanswered += failing["late once"]
        return Account(
            answered=Counter(receipt.lane for receipt in receipts),
            refused_attempts=len(attempts) - len(timeouts),
            receipts=_sum(paid) + small.spent_nanousd,
            invoices=invoices.total(),
            unanswered=len(unanswered),
            estimates=self._reported()[ESTIMATED],
            billed=billed,
            prompts=sum(map(_prompt_nanousd, unanswered)),
            spent=month.spent_nanousd,
            reserved=month.reserved_nanousd,
            all_receipts=_sum(receipts),
            reported=self._reported(),
            small_spent=small.spent_nanousd,
            small_budget=small.cap_nanousd or 0,
            small_refused=small_refused,
        )

    def _read_and_cancel(self, request: Request) -> None:
        assert isinstance(request, CompletionRequest)
        stream = self._fleet.stream(request, timeout=self._timeout)
        for _ in zip(range(READ_CHUNKS), stream, strict=False):
            pass
        self._fleet.cancel(stream.ticket)

    def _all_done(self, tickets: list[Ticket]) -> bool:
        """Send beat's tasks; return whether each request has its result."""
        for task in ("scheduler.aggregate", "scheduler.poll"):
            self._fleet.app.send_task(task, queue="scheduler", expires=10)
        progress = self._fleet.progress(tickets)
        return progress.done == progress.total

    def _receipt(self, ticket: Ticket) -> Receipt | None:
        """The receipt of a request; None for a request whose provider gave no answer."""
        try:
            return self._fleet.result(ticket, 0).receipt
        except (errors.ProviderTimeout, errors.ProviderUnavailable):
            return None

    def _spend_the_small_budget(self) -> int:
        """Send requests until the small budget refuses some; return how many."""
        refused = 0
        for number in range(TIGHT_REQUESTS):
            request = TIGHT.request(TIGHT.name, number, tenant="tight")
            try:
                self._fleet.result(self._fleet.submit(request), self._timeout)
            except errors.BudgetExceeded:
                refused += 1
        return refused

    def _spent(self) -> bool:
        budgets = self._fleet.budget("default").month, self._fleet.budget("tight").day
        return not any(spending.reserved_nanousd for spending in budgets)

    def _reported_all(self) -> bool:
        """Whether the workers have written what they counted, about once a second."""
        month, small = self._fleet.budget("default").month, self._fleet.budget("tight").day
        return self._reported().total() >= month.spent_nanousd + small.spent_nanousd

    def _reported(self) -> Counter[str]:
        costs = Counter[str]()
        keys: Any = self._store.keys("fleet:costs:20*")
        for key in keys:
            stored: Any = self._store.hgetall(key)
            for row, totals in parse_day(stored).items():
                costs[row.provider] += totals.cost_nanousd
        return costs


def _prompt_nanousd(request: Request) -> int:
    tokens = measure(request.body()).tokens
    return int(tokens * MODELS[UNANSWERED].input * 1_000)


def _sum(receipts: Iterable[Receipt]) -> int:
    return sum(receipt.cost_nanousd for receipt in receipts)


def _usd(nanos: int) -> str:
    return f"${nanos / 10**9:.9f}"

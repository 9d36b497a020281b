"""The batch lane's store against its model, on a real Valkey, with faulty schedulers.

Several schedulers share one clock and one Redis. A scheduler may use any lease that it ever had, as
after a long pause. It may die, or lose its job to another scheduler, between two calls of one
operation. Any answer may be lost; then the Redis client repeats the call.

After every step, Redis stores exactly what the model says, after repeated calls too. Only the
answer of a repeated call may differ from that of the first:

park              False: the request is known already
begin_completion  "theirs": the request is completed only after COMPLETION_GUARD_SECONDS
withdraw          "theirs" too, and a job that lost its last request does not become due earlier
lease             None: the job is run only after its lease has expired
create_job        None when the first step is repeated: the job has the requests of that step, as if
                  its scheduler had died

The same 50 runs every time. For more: STORE_MODEL_RUNS=5000 pytest --timeout=0 <this file>
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from config.batch import Batch
from primarch_fleet.redis_support import patient_async
from scheduler.model.backlog import FlushDecision
from scheduler.model.job import (
    Job,
    Location,
    ParkedRecord,
    ParkedRequest,
    RequestGroup,
    RequestSize,
)
from scheduler.model.outcomes import RequestOutcome
from scheduler.store.batch_pauses import Pause
from scheduler.store.batch_store import COMPLETION_GUARD_SECONDS
from scheduler.store.jobs import LEASE_SECONDS, LeaseLost
from scheduler.store.keys import OUTCOME_TTL_SECONDS
from tests.support.store_fixture import (
    BUDGET,
    CHUNK,
    GROUPS,
    LARGE,
    LOCATE,
    SHARED,
    Died,
    FaultyStore,
    check_reads,
    keyspace,
    normalized,
    terms,
)
from tests.support.store_model import JobOrder, Model

T = TypeVar("T")

RUNS = int(os.environ.get("STORE_MODEL_RUNS", "50"))
SETTINGS = settings(
    max_examples=2,
    stateful_step_count=40,
    database=None,
    phases=[Phase.generate, Phase.shrink],  # `explain` would trace every line of many more runs
    suppress_health_check=list(HealthCheck),
)
NAMES = [f"r{number}" for number in range(16)]
POLICIES = [Batch(), Batch(max_inputs=4), Batch(max_bytes=8)]

#: Seconds until the deadline; 0 for none.
DEADLINE = st.sampled_from([0.0, 0.0, 0.0, LEASE_SECONDS, 1.0])
SIZES = st.builds(
    RequestSize,
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from([1, 0, 2, 3, LARGE]),
    DEADLINE,
)
MANY = st.lists(SIZES, min_size=3, max_size=8)
NAME, GROUP = st.sampled_from(NAMES), st.sampled_from(GROUPS)
WHO = st.integers(0, 2)
DECISION = "cancelled"
MEANWHILE = st.sampled_from(["finished", "withdrawn", "requeued"])
OUTCOME = st.sampled_from(list(RequestOutcome))
#: The script of an operation whose answer is lost.
LOST = st.sampled_from([None, 1, 0, None])
#: What happens to a scheduler between two scripts of an operation.
FATE = st.sampled_from(["goes on", "dies", "loses its lease", "goes on"])
COUNTER = st.sampled_from([None, "failures", "expiries", "holds"])
#: A state, when the job is due again, and fields.
STEP = st.tuples(
    st.sampled_from([None, "PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING"]),
    st.sampled_from([0.0, 15.0]),
    st.sampled_from([{}, {"file_id": "f"}, {"waits": 3}, {"status": "s", "scans": 1}]),
)
#: Seconds: a short time, or just longer than each thing that expires.
PAUSE = st.sampled_from(
    [1.0, LEASE_SECONDS, LEASE_SECONDS + 1, COMPLETION_GUARD_SECONDS, OUTCOME_TTL_SECONDS]
)
#: Seconds: whether a completion that was begun may be begun again.
AFTER = st.sampled_from([0.0, COMPLETION_GUARD_SECONDS])


class Schedulers(RuleBasedStateMachine):
    """Everything that can happen to the store; each step is applied to the model too."""

    def __init__(self, url: str, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self._redis = redis
        self.model = Model(CHUNK)
        self.leases: list[Job] = []
        self.jobs = 0
        self._runner = asyncio.Runner()
        self._client = patient_async(url)
        self._stores = [FaultyStore(self._client, lambda: self.model.now) for _ in range(3)]

    def teardown(self) -> None:
        with self._runner:
            self._run(self._client.aclose())

    # Requests

    @rule(who=WHO, name=NAME, group=GROUP, fresh=SIZES, again=st.booleans())
    def park(
        self, who: int, name: str, group: RequestGroup, fresh: RequestSize, again: bool = False
    ) -> None:
        size = fresh._replace(deadline=fresh.deadline and self.model.now + fresh.deadline)
        parked = ParkedRequest(context={"id": name}, parked_at=self.model.now)
        record, store = ParkedRecord(name, parked, group, size), self._stores[who].with_faults()
        for _ in range(1 + again):
            expected = self.model.park(name, parked.model_dump_json(), group, size)
            assert self._run(store.park([record])) == [expected]

    @rule(who=WHO, data=st.data(), resumed=st.booleans(), after=AFTER)
    def begin_completion(self, who: int, data: Any, resumed: bool, after: float) -> None:
        """Begin a completion or resume a withdrawal, twice, as when the answer was lost."""
        self.wait(after)
        name, store, model = self._name(data), self._stores[who].with_faults(), self.model
        for _ in range(2):
            if resumed:
                assert self._run(store.resume_withdrawal(name)) == model.resume_withdrawal(name)
            else:
                assert self._run(store.begin_completions([name])) == {
                    name: model.begin_completion(name)
                }

    @rule(who=WHO, data=st.data(), group=st.none() | GROUP, after=AFTER, lost=LOST)
    def withdraw(
        self, who: int, data: Any, group: RequestGroup | None, after: float, lost: int | None
    ) -> None:
        self.wait(after)
        name, store, jobs = self._name(data), self._stores[who], self.model.jobs
        due = {intent: job.due for intent, job in jobs.items()}
        outcome = self._run(store.with_faults(lost).withdraw(name, DECISION, group))
        expected = self.model.withdraw(name, DECISION, group)
        if lost is not None and (outcome, expected) == ("theirs", "ours"):
            for intent, before in due.items():
                jobs[intent].due = before
        else:
            assert outcome == expected

    @rule(who=WHO, outcome=OUTCOME, known=st.booleans(), data=st.data(), lost=st.booleans())
    def finish(self, who: int, outcome: Any, known: bool, data: Any, lost: bool) -> None:
        """Finish requests, with or without a location, which may be wrong."""
        names, store = [self._name(data), self._name(data)], self._stores[who].with_faults()
        request = self.model.requests.get(names[0])
        location = Location(
            request.group if request else GROUPS[0],
            data.draw(st.sampled_from(["", *self.model.jobs])),
        )
        for _ in range(1 + lost):
            self._run(store.finish(names, outcome, *([location] if known else [])))
        for name in names:
            self.model.finish(name, outcome)

    @precondition(lambda self: self._held())
    @rule(who=WHO, data=st.data(), at=st.sampled_from([LOCATE, 1]), how=MEANWHILE)
    def withdraw_while_it_moves(self, who: int, data: Any, at: int, how: str) -> None:
        """A request leaves its location while the store searches for it."""
        lease, other = data.draw(st.sampled_from(self._held())), self._stores[who - 1]
        name, model = self._name(data, lease), self.model

        async def move() -> None:
            if how == "finished":
                await other.with_faults().finish([name], RequestOutcome.DONE)
                model.finish(name, RequestOutcome.DONE)
            elif how == "withdrawn":
                await other.with_faults().withdraw(name, DECISION)
                model.withdraw(name, DECISION, None)
            else:
                await other.with_faults().requeue(lease, [name], None)
                model.requeue(lease, [name], None)

        store = self._stores[who].with_faults(before={at: move})
        outcome = self._run(store.withdraw(name, DECISION))
        assert outcome == model.withdraw(name, DECISION, None)

    # Jobs

    @initialize(group=GROUP, arrivals=MANY)
    def start_with_a_job(self, group: RequestGroup, arrivals: list[RequestSize]) -> None:
        self.create_job(who=0, group=group, arrivals=arrivals, max_requests=3)

    @rule(
        who=WHO,
        group=GROUP,
        arrivals=MANY,
        max_requests=st.sampled_from([3, 5, 8, 1, 2, 4]),
        policy=st.sampled_from(POLICIES),
        fate=FATE,
        lost=LOST,
    )
    def create_job(
        self,
        *,
        who: int,
        group: RequestGroup,
        arrivals: list[RequestSize],
        max_requests: int,
        policy: Batch = POLICIES[0],
        fate: str = "goes on",
        lost: int | None = None,
    ) -> None:
        """Create a job in a group that has requests."""
        new = [name for name in NAMES if not self.model.knows(name)]
        for name, size in zip(new, arrivals, strict=False):
            self.park(who=who, name=name, group=group, fresh=size)
        self.jobs += 1
        order = JobOrder(
            group, FlushDecision(max_requests, "count"), policy, terms(group), f"j{self.jobs}"
        )
        interrupted_by: list[str] = []

        async def interrupt() -> None:
            interrupted_by.append(fate)
            self.model.create_job(order, steps=1)
            await self._interrupt(fate, order.intent, self._stores[who - 1])

        before = {} if fate == "goes on" or lost == 0 else {1: interrupt}
        try:
            job = self._run(self._stores[who].with_faults(lost, before).create_job(*order))
        except Died:
            return
        if interrupted_by:
            assert job is None
        else:
            token = self.model.create_job(order, **({"steps": 1} if lost == 0 else {}))
            self._leased(job, token, lost)

    @precondition(lambda self: self.model.jobs)
    @rule(who=WHO, data=st.data(), lost=LOST)
    def lease(self, who: int, data: Any, lost: int | None) -> None:
        intent = data.draw(st.sampled_from(list(self.model.jobs)))
        job = self._run(self._stores[who].with_faults(lost).lease(intent))
        self._leased(job, self.model.lease(intent), lost)

    @rule(who=WHO, data=st.data(), to=STEP, lost=LOST)
    def advance(self, who: int, data: Any, to: Any, lost: int | None) -> None:
        state, after, fields = to
        lease = self._lease(data)
        call = self._stores[who].with_faults(lost).advance(lease, state, after, **fields)
        job = self._agreed(call, lambda: self.model.advance(lease, state, after, fields))
        if job is not None:
            assert job.state == self._run(self._stores[who].reload(lease)).state
            self.leases.append(job)

    @rule(who=WHO, data=st.data(), counter=COUNTER, fate=FATE, lost=LOST)
    def requeue(self, who: int, data: Any, counter: Any, fate: str, lost: int | None) -> None:
        lease = self._lease(data)
        members = list(self.model.members(lease.intent).values())
        names = data.draw(st.lists(st.sampled_from([*members, *NAMES]), min_size=1, unique=True))
        not_requeued = list(names)

        async def interrupt() -> None:
            self.model.requeue(lease, names[:CHUNK], counter)
            del not_requeued[:CHUNK]
            await self._interrupt(fate, lease.intent, self._stores[who - 1])

        before = {} if fate == "goes on" else {1: interrupt}
        call = self._stores[who].with_faults(lost, before).requeue(lease, names, counter)
        self._agreed(call, lambda: self.model.requeue(lease, not_requeued, counter))

    @rule(who=WHO, data=st.data(), emptied=st.booleans(), lost=LOST)
    def close_job(self, who: int, data: Any, emptied: bool, lost: int | None) -> None:
        lease, store, model = self._lease(data), self._stores[who], self.model
        if emptied and (members := list(model.members(lease.intent).values())):
            call = store.with_faults().requeue(lease, members, None)
            self._agreed(call, lambda: model.requeue(lease, members, None))
        remaining: list[int] = []
        closed = self._agreed(
            store.with_faults(lost).close_job(lease),
            lambda: remaining.append(model.close_job(lease)),
        )
        assert closed == next(iter(remaining), None)

    @rule(who=WHO, data=st.data(), lost=LOST, renewed=st.booleans())
    def hold_lease(self, who: int, data: Any, lost: int | None, renewed: bool) -> None:
        """Renew a lease, or release it at once."""
        lease = self._lease(data)

        async def renew_or_release() -> None:
            store = self._stores[who].with_faults(lost)
            if renewed:
                held = await store.renew_lease(lease)
                assert bool(held) == self.model.renew_lease(lease)
            else:
                async with store.hold_lease(lease):
                    pass
                self.model.renew_lease(lease, 0.0)

        self._run(renew_or_release())

    @precondition(lambda self: self.model.jobs)
    @rule(who=WHO, data=st.data(), name=st.sampled_from(["*", "a"]), count=st.integers(0, 2))
    def operate(self, who: int, data: Any, name: str, count: int) -> None:
        """Do what needs no lease: make a job due, pause a provider or end its pause."""
        intent, store = data.draw(st.sampled_from(list(self.model.jobs))), self._stores[who]
        self._run(store.make_due(intent))
        self.model.make_due(intent)
        pause = Pause(count=count)
        self._run(store.pauses.set(name, pause))
        self.model.pauses.pop(name, None)
        self.model.pauses.update({name: pause} if count else {})
        assert self._run(store.pauses.get(name)) == pause

    @rule(seconds=PAUSE)
    def wait(self, seconds: float) -> None:
        self._run(self._wait(seconds))

    # Reads

    @rule(who=WHO)
    def read(self, who: int) -> None:
        """Compare all reads with the model."""
        self._run(check_reads(self._stores[who], self.model, NAMES))

    # Invariants

    @invariant()
    def redis_stores_what_the_model_says(self) -> None:
        assert keyspace(self._redis) == normalized(self.model.keyspace())

    @invariant()
    def live_batches_keep_the_token_budget_of_their_queue(self) -> None:
        """Except for one request that is larger than the budget."""
        reserved = self.model.reserved()[SHARED]
        assert reserved <= BUDGET or reserved == LARGE

    # Helpers

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def _held(self) -> list[Job]:
        """The leases that can change a live job."""
        live = map(self.model.jobs.__getitem__, self.model.live_jobs())
        tokens = {job.fields["token"] for job in live}
        return [lease for lease in self.leases if lease.token in tokens]

    def _lease(self, data: Any) -> Job:
        """Draw a lease, sometimes a lost lease."""
        held = self._held() if data.draw(st.integers(0, 3)) else []
        return data.draw(st.sampled_from(held or self.leases))  # type: ignore[no-any-return]

    def _name(self, data: Any, lease: Job | None = None) -> str:
        """Draw a request, mostly of the lane, or of a job."""
        members = self.model.members(lease.intent).values() if lease else self.model.requests
        requests = self.model.requests.items()
        withdrawn = [name for name, request in requests if request.decision]
        names = [*members, *withdrawn, *withdrawn, *NAMES]
        return data.draw(st.sampled_from(names))  # type: ignore[no-any-return]

    def _leased(self, job: Job | None, token: str | None, lost: int | None) -> None:
        """Check that a caller got the job that the model gives it, with a new token."""
        token = None if lost == 0 else token
        assert (job and job.token) == token
        if job is not None:
            assert int(job.token) > max((int(lease.token) for lease in self.leases), default=0)
            self.leases.append(job)

    def _agreed(self, call: Coroutine[Any, Any, T], model: Callable[[], None]) -> T | None:
        """Call store and model, which must agree on a lost lease; the store's answer.

        None when the lease is lost or the caller died.
        """
        try:
            answer = self._run(call)
        except Died:
            return None
        except LeaseLost:
            with pytest.raises(LeaseLost):
                model()
            return None
        model()
        return answer

    async def _wait(self, seconds: float) -> None:
        self.model.now += seconds
        if gone := self.model.expire():
            await self._client.delete(*gone)

    async def _interrupt(self, fate: str, intent: str, other: FaultyStore) -> None:
        """The scheduler dies, or is paused until another scheduler takes its job over."""
        if fate == "dies":
            raise Died
        await self._wait(LEASE_SECONDS)
        job = await other.with_faults().lease(intent)
        self._leased(job, self.model.lease(intent), None)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.store.jobs.CHUNK", CHUNK)


def test_the_store_agrees_with_its_model_whatever_happens_to_its_schedulers(
    valkey_url: str, store: Redis
) -> None:
    for number in range(RUNS):
        # The simplest run and a random one: Hypothesis makes six in seven of more runs by repeating
        # parts of another run, which finds less here.
        machine: Any = seed(number)(lambda: Schedulers(valkey_url, store))
        run_state_machine_as_test(machine, settings=SETTINGS)

"""The batch lane's store against its model, on a real Valkey, by whatever schedulers may do.

Several schedulers share one clock and one Redis. Every lease that one ever had may be used again,
as by a scheduler that was paused; each may die, or be overtaken, between two calls of one
operation; and any answer may be lost, after which the Redis client makes the call once more.

After every step, all that Redis holds is what the model says. That includes a repeated call: it
changes nothing. Only its answer may differ from that of the first, and differs in this way:

park   False: the request is known already, as it now is
begin  "theirs": nobody completes the request before GUARD has passed
leave  "theirs", too, and a job of which it was the last request is looked at no sooner for that
take   None: nobody works on the job before its lease is over
claim  None when it was the first step: the job is what that step took, as if its scheduler had died

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
from scheduler.store.jobs import LEASE_SECONDS, LeaseLost
from scheduler.store.keys import OUTCOME_TTL_SECONDS
from scheduler.store.pauses import Pause
from scheduler.store.store import COMPLETION_GUARD_SECONDS
from tests.support import store_fixture as bench
from tests.support.store_fixture import CHUNK, GROUPS, LARGE, PLACE, Died, Shaky
from tests.support.store_model import Model, Order

T = TypeVar("T")

RUNS = int(os.environ.get("STORE_MODEL_RUNS", "50"))
SETTINGS = settings(
    max_examples=2,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],  # `explain` would trace every line of many more runs
    suppress_health_check=list(HealthCheck),
)
NAMES = [f"r{number}" for number in range(16)]
POLICIES = [Batch(), Batch(max_inputs=4), Batch(max_bytes=8)]

#: With a deadline in so many seconds, if any.
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
MEANWHILE = st.sampled_from(["done", "leaves", "waits"])
OUTCOME = st.sampled_from(list(RequestOutcome))
LOST = st.sampled_from([None, 1, 0, None])
FATE = st.sampled_from(["lives", "dies", "is overtaken", "lives"])
COUNTER = st.sampled_from([None, "failures", "expiries"])
#: A state, when the job is due again, and fields.
STEP = st.tuples(
    st.sampled_from([None, "PREPARED", "UPLOADED", "SUBMITTING", "SUBMITTED", "DRAINING"]),
    st.sampled_from([0.0, 15.0]),
    st.sampled_from([{}, {"file_id": "f"}, {"waits": 3}, {"status": "s", "scans": 1}]),
)
#: Seconds: a moment, or just longer than everything that ends by itself.
PAUSE = st.sampled_from(
    [1.0, LEASE_SECONDS, LEASE_SECONDS + 1, COMPLETION_GUARD_SECONDS, OUTCOME_TTL_SECONDS]
)
#: Long enough for a completion that was begun to be given up, or not.
AFTER = st.sampled_from([0.0, COMPLETION_GUARD_SECONDS])


class Schedulers(RuleBasedStateMachine):
    """Everything that may happen to the store, done to the model as well."""

    def __init__(self, url: str, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self._redis = redis
        self.model = Model(CHUNK)
        self.leases: list[Job] = []
        self.jobs = 0
        self._runner = asyncio.Runner()
        self._client = patient_async(url)
        self._stores = [Shaky(self._client, lambda: self.model.now) for _ in range(3)]

    def teardown(self) -> None:
        with self._runner:
            self._run(self._client.aclose())

    # Requests

    @rule(who=WHO, name=NAME, group=GROUP, of=SIZES, again=st.booleans())
    def park(
        self, who: int, name: str, group: RequestGroup, of: RequestSize, again: bool = False
    ) -> None:
        size = of._replace(deadline=of.deadline and self.model.now + of.deadline)
        parked = ParkedRequest(context={"id": name}, parked_at=self.model.now)
        record, store = ParkedRecord(name, parked, group, size), self._stores[who].faulty()
        for _ in range(1 + again):
            expected = self.model.park(name, parked.model_dump_json(), group, size)
            assert self._run(store.park([record])) == [expected]

    @rule(who=WHO, data=st.data(), resumed=st.booleans(), after=AFTER)
    def begin(self, who: int, data: Any, resumed: bool, after: float) -> None:
        """For a result, or of what somebody had decided on; and once more, as if unanswered."""
        self.wait(after)
        name, store, model = self._name(data), self._stores[who].faulty(), self.model
        for _ in range(2):
            if resumed:
                assert self._run(store.resume_withdrawal(name)) == model.resume(name)
            else:
                assert self._run(store.begin_completions([name])) == {name: model.begin(name)}

    @rule(who=WHO, data=st.data(), group=st.none() | GROUP, after=AFTER, lost=LOST)
    def leave(
        self, who: int, data: Any, group: RequestGroup | None, after: float, lost: int | None
    ) -> None:
        self.wait(after)
        name, store, jobs = self._name(data), self._stores[who], self.model.jobs
        due = {intent: job.due for intent, job in jobs.items()}
        left = self._run(store.faulty(lost).withdraw(name, DECISION, group))
        expected = self.model.leave(name, DECISION, group)
        if lost is not None and (left, expected) == ("theirs", "ours"):
            for intent, before in due.items():
                jobs[intent].due = before
        else:
            assert left == expected

    @rule(who=WHO, outcome=OUTCOME, known=st.booleans(), data=st.data(), lost=st.booleans())
    def finish(self, who: int, outcome: Any, known: bool, data: Any, lost: bool) -> None:
        """As after an answer, in the place where they are expected and may be no more; or not."""
        names, store = [self._name(data), self._name(data)], self._stores[who].faulty()
        one = self.model.requests.get(names[0])
        place = Location(
            (one.group if one else GROUPS[0]),
            data.draw(st.sampled_from(["", *self.model.jobs])),
        )
        for _ in range(1 + lost):
            self._run(store.finish(names, outcome, *([place] if known else [])))
        for name in names:
            self.model.finish(name, outcome)

    @precondition(lambda self: self._held())
    @rule(who=WHO, data=st.data(), at=st.sampled_from([PLACE, 1]), how=MEANWHILE)
    def leave_while_it_moves(self, who: int, data: Any, at: int, how: str) -> None:
        """A request is not where it was any more when it was looked for."""
        lease, other = data.draw(st.sampled_from(self._held())), self._stores[who - 1]
        name, model = self._name(data, lease), self.model

        async def moved() -> None:
            if how == "done":
                await other.faulty().finish([name], RequestOutcome.DONE)
                model.finish(name, RequestOutcome.DONE)
            elif how == "leaves":
                await other.faulty().withdraw(name, DECISION)
                model.leave(name, DECISION, None)
            else:
                await other.faulty().requeue(lease, [name], None)
                model.requeue(lease, [name], None)

        left = self._run(self._stores[who].faulty(before={at: moved}).withdraw(name, DECISION))
        assert left == model.leave(name, DECISION, None)

    # Jobs

    @initialize(group=GROUP, arrivals=MANY)
    def begin_at_work(self, group: RequestGroup, arrivals: list[RequestSize]) -> None:
        self.claim(who=0, group=group, arrivals=arrivals, most=3)

    @rule(
        who=WHO,
        group=GROUP,
        arrivals=MANY,
        most=st.sampled_from([3, 5, 8, 1, 2, 4]),
        policy=st.sampled_from(POLICIES),
        fate=FATE,
        lost=LOST,
    )
    def claim(
        self,
        *,
        who: int,
        group: RequestGroup,
        arrivals: list[RequestSize],
        most: int,
        policy: Batch = POLICIES[0],
        fate: str = "lives",
        lost: int | None = None,
    ) -> None:
        """Out of a group in which there is something to cut."""
        new = [name for name in NAMES if not self.model.knows(name)]
        for name, of in zip(new, arrivals, strict=False):
            self.park(who=who, name=name, group=group, of=of)
        self.jobs += 1
        order = Order(
            group, FlushDecision(most, "count"), policy, bench.terms(group), f"j{self.jobs}"
        )
        met: list[str] = []

        async def interrupted() -> None:
            met.append(fate)
            self.model.claim(order, steps=1)
            await self._meet(fate, order.intent, self._stores[who - 1])

        before = {} if fate == "lives" or lost == 0 else {1: interrupted}
        try:
            job = self._run(self._stores[who].faulty(lost, before).create_job(*order))
        except Died:
            return
        if met:
            assert job is None
        else:
            token = self.model.claim(order, **({"steps": 1} if lost == 0 else {}))
            self._leased(job, token, lost)

    @precondition(lambda self: self.model.jobs)
    @rule(who=WHO, data=st.data(), lost=LOST)
    def take(self, who: int, data: Any, lost: int | None) -> None:
        intent = data.draw(st.sampled_from(list(self.model.jobs)))
        job = self._run(self._stores[who].faulty(lost).lease(intent))
        self._leased(job, self.model.take(intent), lost)

    @rule(who=WHO, data=st.data(), to=STEP, lost=LOST)
    def advance(self, who: int, data: Any, to: Any, lost: int | None) -> None:
        state, after, fields = to
        lease = self._lease(data)
        call = self._stores[who].faulty(lost).advance(lease, state, after, **fields)
        job = self._agreed(call, lambda: self.model.advance(lease, state, after, fields))
        if job is not None:
            assert job.state == self._run(self._stores[who].reload(lease)).state
            self.leases.append(job)

    @rule(who=WHO, data=st.data(), counter=COUNTER, fate=FATE, lost=LOST)
    def requeue(self, who: int, data: Any, counter: Any, fate: str, lost: int | None) -> None:
        lease = self._lease(data)
        members = list(self.model.members(lease.intent).values())
        names = data.draw(st.lists(st.sampled_from([*members, *NAMES]), min_size=1, unique=True))
        left = list(names)

        async def interrupted() -> None:
            self.model.requeue(lease, names[:CHUNK], counter)
            del left[:CHUNK]
            await self._meet(fate, lease.intent, self._stores[who - 1])

        before = {} if fate == "lives" else {1: interrupted}
        call = self._stores[who].faulty(lost, before).requeue(lease, names, counter)
        self._agreed(call, lambda: self.model.requeue(lease, left, counter))

    @rule(who=WHO, data=st.data(), emptied=st.booleans(), lost=LOST)
    def close(self, who: int, data: Any, emptied: bool, lost: int | None) -> None:
        lease, store, model = self._lease(data), self._stores[who], self.model
        if emptied and (members := list(model.members(lease.intent).values())):
            call = store.faulty().requeue(lease, members, None)
            self._agreed(call, lambda: model.requeue(lease, members, None))
        left: list[int] = []
        closed = self._agreed(
            store.faulty(lost).close_job(lease), lambda: left.append(model.close(lease))
        )
        assert closed == next(iter(left), None)

    @rule(who=WHO, data=st.data(), lost=LOST, renewed=st.booleans())
    def keep(self, who: int, data: Any, lost: int | None, renewed: bool) -> None:
        """Keep a lease for a while, or give it back at once."""
        lease = self._lease(data)

        async def kept() -> None:
            store = self._stores[who].faulty(lost)
            if renewed:
                held = await store.renew_lease(lease)
                assert bool(held) == self.model.renew(lease)
            else:
                async with store.hold_lease(lease):
                    pass
                self.model.renew(lease, 0.0)

        self._run(kept())

    @precondition(lambda self: self.model.jobs)
    @rule(who=WHO, data=st.data(), name=st.sampled_from(["*", "a"]), count=st.integers(0, 2))
    def operate(self, who: int, data: Any, name: str, count: int) -> None:
        """What needs no lease: a job is to be looked at now, a provider is paused or goes on."""
        intent, store = data.draw(st.sampled_from(list(self.model.jobs))), self._stores[who]
        self._run(store.make_due(intent))
        self.model.hasten(intent)
        pause = Pause(count=count)
        self._run(store.pauses.set(name, pause))
        self.model.pauses.pop(name, None)
        self.model.pauses.update({name: pause} if count else {})
        assert self._run(store.pauses.get(name)) == pause

    @rule(seconds=PAUSE)
    def wait(self, seconds: float) -> None:
        self._run(self._wait(seconds))

    # What is seen

    @rule(who=WHO)
    def look(self, who: int) -> None:
        """What a scheduler is told is what the model says."""
        self._run(bench.look(self._stores[who], self.model, NAMES))

    # What is always so

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        assert bench.keyspace(self._redis) == bench.plain(self.model.keyspace())

    @invariant()
    def live_batches_keep_to_the_budget_of_their_queue(self) -> None:
        """Except for one request that is larger than all of it."""
        reserved = self.model.reserved()[bench.SHARED]
        assert reserved <= bench.BUDGET or reserved == LARGE

    # How

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def _held(self) -> list[Job]:
        """The leases by which a live job can be changed."""
        live = map(self.model.jobs.__getitem__, self.model.live())
        tokens = {job.fields["token"] for job in live}
        return [lease for lease in self.leases if lease.token in tokens]

    def _lease(self, data: Any) -> Job:
        """Any lease, now and then one that is over."""
        held = self._held() if data.draw(st.integers(0, 3)) else []
        return data.draw(st.sampled_from(held or self.leases))  # type: ignore[no-any-return]

    def _name(self, data: Any, lease: Job | None = None) -> str:
        """A request, mostly one of the lane, or of a job."""
        members = self.model.members(lease.intent).values() if lease else self.model.requests
        leaving = [name for name, one in self.model.requests.items() if one.leaving]
        some = [*members, *leaving, *leaving, *NAMES]
        return data.draw(st.sampled_from(some))  # type: ignore[no-any-return]

    def _leased(self, job: Job | None, token: str | None, lost: int | None) -> None:
        """A caller was given what it was to be given."""
        token = None if lost == 0 else token
        assert (job and job.token) == token
        if job is not None:
            assert int(job.token) > max((int(lease.token) for lease in self.leases), default=0)
            self.leases.append(job)

    def _agreed(self, call: Coroutine[Any, Any, T], model: Callable[[], None]) -> T | None:
        """Do both; they agree on whether the lease is lost. None when it is, or the caller died."""
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
        if gone := self.model.forget():
            await self._client.delete(*gone)

    async def _meet(self, fate: str, intent: str, other: Shaky) -> None:
        """The scheduler dies, or is paused for so long that another one takes its job over."""
        if fate == "dies":
            raise Died
        await self._wait(LEASE_SECONDS)
        job = await other.faulty().lease(intent)
        self._leased(job, self.model.take(intent), None)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.store.jobs.CHUNK", CHUNK)


def test_the_store_agrees_with_its_model_whatever_happens_to_its_schedulers(
    valkey_url: str, store: Redis
) -> None:
    for number in range(RUNS):
        # The simplest run and one by chance: of more, Hypothesis makes six in seven by repeating
        # parts of another one, which finds less here.
        machine: Any = seed(number)(lambda: Schedulers(valkey_url, store))
        run_state_machine_as_test(machine, settings=SETTINGS)

"""An orchestrator and an agent that use the fleet: `python examples/orchestrator.py [url]`.

Without the URL of a fleet's Redis, they use the fleet that `make up` started from this checkout.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # in a service it is installed

from examples.hello import redis_url
from primarch_fleet import (
    AsyncFleet,
    Completion,
    CompletionRequest,
    Fleet,
    FleetError,
    Progress,
    Ticket,
)

#: Seconds to wait for an answer.
TIMEOUT_SECONDS = 60


class Orchestrator:
    """The calls of an orchestrator, each on the lane that fits it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def process_request(self, text: str) -> Completion:
        """Let the fleet choose the lane; the receipt says which one and why."""
        request = CompletionRequest(model="gpt-4o-mini", messages=user_message(text))
        return self._fleet.result(self._fleet.submit(request), timeout=TIMEOUT_SECONDS)

    def route_completion(self, text: str) -> Completion:
        """Call a provider at once, chosen by a routing strategy of LiteLLM."""
        request = CompletionRequest(
            model="gpt-4o",
            messages=user_message(text),
            lane="realtime",
            routing_strategy="latency-based-routing",
        )
        return self._fleet.result(self._fleet.submit(request), timeout=TIMEOUT_SECONDS)

    def batch_generate(self, prompts: Sequence[str]) -> list[Completion]:
        """Run many prompts on your own GPUs, where vLLM batches them."""
        tickets = self._fleet.submit_many(
            CompletionRequest(model="smollm2-135m", messages=user_message(prompt), lane="local")
            for prompt in prompts
        )
        return [self._fleet.result(ticket, timeout=TIMEOUT_SECONDS) for ticket in tickets]

    def submit_batch(self, prompts: Sequence[str]) -> list[Ticket]:
        """Submit prompts for half the price within a day, in the provider's batches."""
        return self._fleet.submit_many(
            CompletionRequest(model="gpt-4o-mini", messages=user_message(prompt), lane="batch")
            for prompt in prompts
        )

    def monitor_batch(self, tickets: Sequence[Ticket], every: float = 0.5) -> Iterator[Progress]:
        """Yield the progress every so many seconds, until all requests are finished."""
        progress = self._fleet.progress(tickets)
        while progress.done < progress.total:
            yield progress
            time.sleep(every)
            progress = self._fleet.progress(tickets)
        yield progress

    def retrieve_batch_results(self, tickets: Sequence[Ticket]) -> list[Completion]:
        return [self._fleet.result(ticket, timeout=TIMEOUT_SECONDS) for ticket in tickets]


class RoutingEnabledAgent:
    """An agent that sets tenant, latency, cost and quality limits, and lets the fleet route."""

    def __init__(self, fleet: AsyncFleet, system_message: str) -> None:
        self._fleet, self._system = fleet, {"role": "system", "content": system_message}

    async def process_with_optimization(self, text: str, tenant: str, user: str) -> Completion:
        request = CompletionRequest(
            model="gpt-4o-mini",
            messages=[self._system, *user_message(text)],
            max_completion_tokens=200,
            tenant_id=tenant,
            user_id=user,
            max_latency=2.0,  # seconds
            max_cost_nanousd=50_000_000,  # nano-dollars: 5 cents
            quality=0.8,
        )
        return await self._fleet.result(await self._fleet.submit(request), timeout=TIMEOUT_SECONDS)


def user_message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def show(name: str, completion: Completion) -> None:
    receipt = completion.receipt
    print(
        f"{name}: {receipt.lane} ({receipt.reason}), {receipt.model} by {receipt.strategy}, "
        f"{receipt.latency:.2f} s, ${receipt.cost_usd}, ${receipt.saving_usd} saved"
    )


def orchestrate(url: str) -> None:
    with Fleet(url) as fleet:
        orchestrator = Orchestrator(fleet)
        show("process_request", orchestrator.process_request("Why is the sky blue?"))
        show("route_completion", orchestrator.route_completion("Why is the sea salty?"))
        for completion in orchestrator.batch_generate(["One word.", "Two words.", "Three words."]):
            show("batch_generate", completion)
        tickets = orchestrator.submit_batch(["Name a bird.", "Name a fish.", "Name a tree."])
        for progress in orchestrator.monitor_batch(tickets):
            print(f"monitor_batch: {progress.done} of {progress.total}, {progress.failed} failed")
        for completion in orchestrator.retrieve_batch_results(tickets):
            show("retrieve_batch_results", completion)


async def ask_agent(url: str) -> None:
    async with AsyncFleet(url) as fleet:
        agent = RoutingEnabledAgent(fleet, "You are a lighthouse keeper.")
        answer = await agent.process_with_optimization("How far do you see?", "acme", "ada")
    show("process_with_optimization", answer)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else redis_url()
    try:
        orchestrate(url)
        asyncio.run(ask_agent(url))
    except FleetError as error:
        sys.exit(f"{error.code}: {error}")


if __name__ == "__main__":
    main()

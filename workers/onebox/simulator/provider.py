"""The simulated provider without HTTP: its answers, charges and faults."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from workers.onebox.simulator import chat, embeddings
from workers.onebox.simulator.clock import Clock
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, model_not_found
from workers.onebox.simulator.faults import Faults
from workers.onebox.simulator.ids import Ids
from workers.onebox.simulator.invoice import Invoice, Kind
from workers.onebox.simulator.parameters import required
from workers.onebox.simulator.profile import Endpoint, Profile
from workers.onebox.simulator.seeded_random import seeded_random
from workers.onebox.simulator.tokens import Usage

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/embeddings": "embeddings",
}


class Answer(Protocol):
    """The answer to a request, before its JSON is written."""

    @property
    def model(self) -> str:
        """The model that answered."""
        ...

    @property
    def usage(self) -> Usage:
        """The tokens that are charged."""
        ...

    def body(self, completion_id: str, created: int) -> JsonObject:
        """The answer as OpenAI's object."""
        ...


class Provider:
    """Answers requests by a profile, and keeps the invoice. Use it from one thread only."""

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self.clock = clock
        self.ids = Ids(f"{profile.seed} {clock.now()}")
        self.profile = profile
        self.invoice = Invoice()

    @property
    def profile(self) -> Profile:
        """The settings; setting them resets the counters of fault rules."""
        return self._profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._profile = profile
        self.faults = Faults(profile.faults, profile.seed)

    def reset(self) -> None:
        """Reset charges and the counters of fault rules; ids are still never reused."""
        self.profile = self._profile
        self.invoice = Invoice()

    def answer(self, endpoint: Endpoint, body: JsonObject) -> Answer:
        """Answer a request body of one of the `ENDPOINTS`, without a charge. Raises ApiError."""
        if endpoint == "chat.completions":
            return self.complete(body)
        self._check_model(endpoint, required(body, "model", str))
        return embeddings.embed(body)

    def complete(self, body: JsonObject) -> chat.Completion:
        """Answer a chat request, without a charge. Raises ApiError."""
        self._check_model("chat.completions", required(body, "model", str))
        return chat.complete(body)

    def charge(self, answer: Answer, kind: Kind) -> None:
        """Add an answer to the invoice."""
        prices = self._profile.prices(answer.model)
        self.invoice.charge(answer.model, answer.usage, prices, kind)

    def write(self, answer: Answer) -> JsonObject:
        """The answer's JSON, with a new id and the current time."""
        return answer.body(self.ids.new("chatcmpl-"), int(self.clock.now()))

    def write_chunks(
        self, completion: chat.Completion, *, include_usage: bool
    ) -> Iterator[JsonObject]:
        """The answer's JSON in chunks that share a new id and the current time."""
        completion_id, now = self.ids.new("chatcmpl-"), int(self.clock.now())
        return completion.chunks(completion_id, now, include_usage=include_usage)

    def latency(self, model: str, raw: bytes) -> float:
        """Seconds until the first token; equal request bodies have equal latencies."""
        latency = self._profile.latency_of(model)
        if not latency.jitter:
            return latency.mean
        offset = 2 * seeded_random(self._profile.seed, raw) - 1
        return max(0.0, latency.mean + latency.jitter * offset)

    def _check_model(self, endpoint: Endpoint, name: str) -> None:
        if not self._profile.models:
            return
        model = self._profile.models.get(name)
        if model is None:
            raise model_not_found(name)
        if endpoint == "chat.completions" and model.kind != "chat":
            text = (
                "This is not a chat model and thus not supported in the v1/chat/completions "
                "endpoint. Did you mean to use v1/completions?"
            )
            raise ApiError(404, text, param="model")
        if endpoint == "embeddings" and model.kind != "embedding":
            raise invalid("This model does not support embeddings.", "model")

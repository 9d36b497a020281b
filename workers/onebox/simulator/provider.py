"""The simulated provider without HTTP: its answers, charges and faults."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from workers.onebox.simulator import chat, embeddings
from workers.onebox.simulator.clock import Clock
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, model_not_found
from workers.onebox.simulator.ids import Ids
from workers.onebox.simulator.invoice import Invoice, Kind
from workers.onebox.simulator.parameters import required
from workers.onebox.simulator.profile import Fault, Profile
from workers.onebox.simulator.prompt import PromptCache
from workers.onebox.simulator.rule import Endpoint, Rules
from workers.onebox.simulator.script import Script
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
        #: Writes OpenAI's body in the form of this provider's API.
        self.form: Callable[[JsonObject], JsonObject] = lambda body: body
        self.reset()

    @property
    def profile(self) -> Profile:
        """The settings; setting them resets the counters of fault rules."""
        return self._profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        self._profile = profile
        self.faults: Rules[Fault] = Rules(profile.faults, profile.seed)

    def reset(self) -> None:
        """Reset charges, scripts and counters of fault rules; ids are still never reused."""
        self.profile = self._profile
        self.scripts: Rules[Script] = Rules((), self._profile.seed)
        self.invoice = Invoice()
        self._cache = PromptCache()

    def answer(self, endpoint: Endpoint, body: JsonObject) -> Answer:
        """Answer a request body of one of the `ENDPOINTS`, without a charge. Raises ApiError."""
        if endpoint == "chat.completions":
            return self.complete(body)
        self._check_model(endpoint, required(body, "model", str))
        return embeddings.embed(body)

    def complete(self, body: JsonObject) -> chat.Completion:
        """Answer a chat request, without a charge. Raises ApiError."""
        name = required(body, "model", str)
        self._check_model("chat.completions", name)
        return chat.complete(body, self._profile.prices(name))

    def respond(self, answer: Answer, kind: Kind, script: Script | None = None) -> Any:
        """Charge an answer, and write its JSON with a new id and the current time.

        It is charged by the usage in the body that is sent, or by its own where that has none.
        """
        prices = self._profile.prices(answer.model)
        if prices.prompt_cache is not None and isinstance(answer, chat.Completion):
            answer = answer.cached(self._cache.use(answer.request, prices.prompt_cache))
        body = self.form(answer.body(self.ids.new("chatcmpl-"), int(self.clock.now())))
        usage = body["usage"]
        if script is not None:
            body = script.applied(body)
        sent = body if isinstance(body, dict) else {}
        usage = sent.get("usage") or usage
        if script is not None and script.billed is not None:
            usage = script.billed
        self.invoice.charge(sent, usage, answer.model, prices, kind)
        return body

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

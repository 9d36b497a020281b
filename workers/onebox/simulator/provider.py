"""The simulated provider without HTTP: its answers, charges and faults."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from workers.onebox.simulator import chat, embeddings, moderations, responses
from workers.onebox.simulator.clock import Clock
from workers.onebox.simulator.errors import ApiError, JsonObject, invalid, model_not_found
from workers.onebox.simulator.ids import Ids
from workers.onebox.simulator.invoice import Invoice, Kind
from workers.onebox.simulator.parameters import required
from workers.onebox.simulator.profile import Fault, Model, Profile
from workers.onebox.simulator.prompt import PromptCache
from workers.onebox.simulator.rule import Endpoint, Rules
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.seeded_random import seeded_random
from workers.onebox.simulator.tokens import Usage

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/moderations": "moderations",
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


class Api(NamedTuple):
    """One endpoint: how it answers, for which kinds of model, and how it refuses the others."""

    answer: Callable[[JsonObject, Model], Answer]
    kinds: tuple[str, ...]
    refusal: Callable[[], ApiError]


_NOT_FOR_CHAT = (
    "This is not a chat model and thus not supported in the v1/chat/completions endpoint. "
    "Did you mean to use v1/completions?"
)
APIS: Mapping[Endpoint, Api] = {
    "chat.completions": Api(
        chat.complete, ("chat",), lambda: ApiError(404, _NOT_FOR_CHAT, param="model")
    ),
    "embeddings": Api(
        lambda body, _: embeddings.embed(body),
        ("embedding",),
        lambda: invalid("This model does not support embeddings.", "model"),
    ),
    "moderations": Api(
        lambda body, _: moderations.moderate(body),
        ("moderation",),
        lambda: invalid("This model does not support moderations.", "model"),
    ),
    "responses": Api(
        responses.respond,
        ("chat", "responses"),
        lambda: invalid("This model is not supported with the Responses API.", "model"),
    ),
}


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
        #: The ids of the responses that may be continued.
        self._stored: set[str | None] = set()

    def answer(self, endpoint: Endpoint, body: JsonObject) -> Answer:
        """Answer a request body of one of the `ENDPOINTS`, without a charge. Raises ApiError."""
        name = required(body, "model", str)
        self._check_model(endpoint, name)
        if endpoint == "responses" and (previous := body.get("previous_response_id")):
            self._check_stored(previous)
        return APIS[endpoint].answer(body, self._profile.prices(name))

    def respond(self, answer: Answer, kind: Kind, script: Script | None = None) -> Any:
        """Charge an answer, and write its JSON with a new id and the current time.

        It is charged by the usage in the body that is sent, or by its own where that has none.
        """
        prices = self._profile.prices(answer.model)
        if prices.prompt_cache is not None and isinstance(
            answer, chat.Completion | responses.Response
        ):
            answer = answer.cached(self._cache.use(answer.request, prices.prompt_cache))
        body = self.form(answer.body(self.ids.new("chatcmpl-"), int(self.clock.now())))
        usage = body.get("usage") or {}
        if script is not None:
            body = script.applied(body)
        sent = body if isinstance(body, dict) else {}
        usage = sent.get("usage") or usage
        if script is not None and script.billed is not None:
            usage = script.billed
        self.invoice.charge(sent, usage, answer.model, prices, kind)
        if isinstance(answer, responses.Response) and answer.asked.get("store") is not False:
            self._stored.add(sent.get("id"))
        return body

    def latency(self, model: str, raw: bytes) -> float:
        """Seconds until the first token; equal request bodies have equal latencies."""
        latency = self._profile.latency_of(model)
        if not latency.jitter:
            return latency.mean
        offset = 2 * seeded_random(self._profile.seed, raw) - 1
        return max(0.0, latency.mean + latency.jitter * offset)

    def _check_stored(self, response_id: str) -> None:
        if response_id not in self._stored:
            text = f"Previous response with id '{response_id}' not found."
            raise invalid(text, "previous_response_id", "previous_response_not_found")

    def _check_model(self, endpoint: Endpoint, name: str) -> None:
        if not self._profile.models:
            return
        model = self._profile.models.get(name)
        if model is None:
            raise model_not_found(name)
        if model.kind not in APIS[endpoint].kinds:
            raise APIS[endpoint].refusal()

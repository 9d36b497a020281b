"""Requests of every kind that has a price of its own, on all lanes, and what they were billed.

The prices of the simulated providers are written here by hand, from the providers' own pages:
https://platform.openai.com/docs/pricing and https://docs.claude.com/en/docs/about-claude/pricing.
The fleet has those of the list in the LiteLLM package.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from primarch_fleet import CompletionRequest, EmbeddingRequest
from primarch_fleet.requests import Request
from workers.onebox.simulator.anthropic import AnthropicApp
from workers.onebox.simulator.profile import BatchProfile, Fault, Model, Profile, Rates
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

CLAUDE, LOCAL = "claude-sonnet-4-5", "own"
#: Only requests whose calls may get no answer go to this model, so its bill stands apart.
UNANSWERED = "gpt-4o-mini"
MODELS = {
    "gpt-4o": Model(
        input="2.50",
        cached_input="1.25",
        output=10,
        tiers={"priority": Rates(input="4.25", cached_input="2.125", output=17)},
    ),
    "gpt-5": Model(
        input="1.25",
        cached_input="0.125",
        output=10,
        tiers={"flex": Rates(input="0.625", cached_input="0.0625", output=5)},
        batch=Rates(input="0.625", cached_input="0.0625", output=5),
    ),
    "gpt-audio": Model(input="2.50", output=10, audio_input=32, audio_output=64),
    "text-embedding-3-small": Model(kind="embedding", input="0.02"),
    UNANSWERED: Model(input="0.15", cached_input="0.075", output="0.60"),
    CLAUDE: Model(input=3, cached_input="0.30", cache_write_5m="3.75", cache_write_1h=6, output=15),
}
#: Calls that the providers refuse, which cost nothing and are repeated.
REFUSALS = tuple(
    Fault(endpoint=endpoint, model=model, status=status, probability=0.02)
    for endpoint in ("chat.completions", "embeddings")
    for model in MODELS
    if model != UNANSWERED
    for status in (500, 503)
)
#: Usages of each kind; the fleet prices each of them.
VARIANTS = 4
QUICK = BatchProfile(validating=0.1, in_progress=0.5, finalizing=0.1)
TIMEOUT_SECONDS, LATE_SECONDS = 1.0, 3.0
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000}}
SOUND = {"type": "input_audio", "input_audio": {"format": "wav", "data": "A" * 4_000}}
LONG_ANSWER = " ".join(f"w{number:02}" for number in range(150))


def config(batch_size: int) -> dict[str, Any]:
    """The fleet's configuration; it has no prices of the providers' models."""
    deployments = [
        {
            "id": name,
            "model": name,
            "provider": "anthropic" if name == CLAUDE else "openai",
            "upstream": name,
            "batch": name not in ("gpt-audio", UNANSWERED),
        }
        for name in MODELS
    ]
    impatient = {"id": "late", "model": "late", "provider": "openai", "upstream": UNANSWERED}
    params = {"timeout": TIMEOUT_SECONDS, "stream_timeout": TIMEOUT_SECONDS}
    return {
        "providers": {
            name: {
                "litellm_provider": name,
                "api_key": "os.environ/TEST_KEY",
                "api_base": f"os.environ/TEST_{name.upper()}",
            }
            for name in ("openai", "anthropic")
        },
        "deployments": [*deployments, impatient | {"litellm_params": params}],
        "engines": [
            {"model": LOCAL, "engine": "simulated", "price": {"input": "0.01", "output": "0.02"}}
        ],
        "batch": {
            "max_requests": batch_size,
            "max_wait": 1,
            "aggregate_interval": 0.2,
            "poll_interval": 0.2,
        },
        "tenants": {"default": {"monthly_budget": "1000000"}, "tight": {"daily_budget": "0.15"}},
        "routing": {
            "num_retries": 5,
            "timeout": 600,
            "stream_timeout": 600,
            "disable_cooldowns": True,
            "router_settings": {"model_group_retry_policy": {"late": {"TimeoutErrorRetries": 2}}},
        },
    }


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: their fields, and how their usage is drawn."""

    name: str
    model: str
    #: Fields of the request.
    fields: dict[str, Any] = field(default_factory=dict)
    #: What the answer has besides its usage.
    answer: dict[str, Any] = field(default_factory=dict)
    #: The kinds of tokens in the usage besides text.
    details: tuple[str, ...] = ()
    #: A part of the message besides its text.
    part: dict[str, Any] | None = None

    def usage(self, numbers: random.Random) -> dict[str, Any]:
        """A usage with odd numbers, as the provider of the model reports it."""
        prompt, output = numbers.randint(9, 9_999), numbers.randint(1, 999)
        parts = {name: numbers.randint(1, prompt // 3) for name in self.details}
        if self.model == CLAUDE:
            return {"input_tokens": prompt, "output_tokens": output, **parts}
        if "embedding" in self.model:
            return {"prompt_tokens": prompt, "total_tokens": prompt}
        total = {"completion_tokens": output, "total_tokens": prompt + output}
        return {"prompt_tokens": prompt, "prompt_tokens_details": parts, **total}

    def request(self, tag: str, number: int, tenant: str = "default") -> Request:
        """The request with a number, which its script knows by the tag."""
        text = f"<{tag}> request {number}"
        usual = {"model": self.model, "lane": "realtime", "tenant_id": tenant, **self.fields}
        if "embedding" in self.model:
            return EmbeddingRequest(input=text, **usual)
        parts = [{"type": "text", "text": text}, *([self.part] if self.part else [])]
        content: Any = parts if self.part else text
        messages = [{"role": "user", "content": content}]
        return CompletionRequest(messages=messages, max_completion_tokens=5_000, **usual)


BATCH, STREAM = {"lane": "batch"}, {"stream": True}
CACHED = ("cached_tokens",)
PRIORITY = {"service_tier": "priority"}
KINDS = [
    Kind("plain", "gpt-4o"),
    Kind("cached", "gpt-4o", details=CACHED),
    Kind("cached stream", "gpt-4o", STREAM, details=CACHED),
    Kind("picture", "gpt-4o", details=("cached_tokens", "image_tokens"), part=PICTURE),
    Kind("priority", "gpt-4o", PRIORITY, PRIORITY, CACHED),
    Kind("priority stream", "gpt-4o", PRIORITY | STREAM, PRIORITY),
    Kind("priority refused", "gpt-4o", PRIORITY, {"service_tier": "default"}),
    Kind("flex", "gpt-5", {"service_tier": "flex"}, {"service_tier": "flex"}, CACHED),
    Kind("reasoning", "gpt-5", details=CACHED),
    Kind("sound", "gpt-audio", details=("audio_tokens",), part=SOUND),
    Kind("claude", CLAUDE, details=("cache_read_input_tokens", "cache_creation_input_tokens")),
    Kind("claude stream", CLAUDE, STREAM, details=("cache_creation_input_tokens",)),
    Kind("embedding", "text-embedding-3-small"),
    Kind("batch", "gpt-4o", BATCH),
    Kind("cached batch", "gpt-5", BATCH, details=CACHED),
    Kind("claude batch", CLAUDE, BATCH, details=("cache_read_input_tokens",)),
    Kind("embedding batch", "text-embedding-3-small", BATCH),
    Kind("local", LOCAL, {"lane": "local"}),
    Kind("local stream", LOCAL, {"lane": "local"} | STREAM),
]
#: Kinds whose calls get no answer.
LATE = Kind("late", "late")
FAILING = [
    LATE,
    Kind("broken", UNANSWERED, STREAM),
    Kind("cut", UNANSWERED, STREAM),
]
#: A kind of a tenant whose budget is soon spent.
TIGHT = Kind("tight", "gpt-4o", PRIORITY, PRIORITY)


def scripts(numbers: random.Random) -> list[Script]:
    """The answers of the providers to all kinds."""
    found = [
        Script(scope=scope, contains=f"<{kind.name} {variant}>", merge=answer)
        for kind in KINDS
        if kind.model != LOCAL
        for variant in range(VARIANTS)
        for answer in [{"usage": kind.usage(numbers), **kind.answer}]
        for scope in ("call", "line")
    ]
    long = {"choices": [{"message": {"content": LONG_ANSWER}}]}
    return [
        *found,
        Script(contains="<late>", delay=LATE_SECONDS),
        Script(contains="<broken>", merge=long, cut=20),
        Script(contains="<cut>", merge=long, pause=0.03),
        Script(contains="<tight>", merge={"usage": TIGHT.usage(numbers), **TIGHT.answer}),
    ]


@contextmanager
def providers(seed: int) -> Iterator[dict[str, Simulator]]:
    """OpenAI and Anthropic, as simulated."""
    profile = Profile(models=MODELS, batch=QUICK, faults=REFUSALS, seed=seed)
    with Simulator(profile) as openai, Simulator(profile, app=AnthropicApp) as anthropic:
        for simulator in (openai, anthropic):
            simulator.script(*scripts(random.Random(seed)))  # noqa: S311 - a test's numbers
        yield {"openai": openai, "anthropic": anthropic}


def answered_requests(count: int, seed: int) -> list[Request]:
    """Requests of KINDS in a random order, which are all answered."""
    numbers = random.Random(seed)  # noqa: S311 - a test's numbers
    kinds = numbers.choices(KINDS, k=count)
    return [
        kind.request(f"{kind.name} {numbers.randrange(VARIANTS)}", number)
        for number, kind in enumerate(kinds)
    ]

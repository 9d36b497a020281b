"""What answers cost, through real workers: each row has a provider's usage and the right price.

The prices are those of the list in the LiteLLM package; this configuration has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from primarch_fleet import Completion, CompletionRequest, EmbeddingRequest, Fleet, Ticket
from primarch_fleet.errors import BudgetExceeded
from primarch_fleet.requests import Request
from tests.support.workers import StartWorker, eventually
from workers.onebox.simulator.anthropic import AnthropicApp
from workers.onebox.simulator.profile import BatchProfile, Model, Profile
from workers.onebox.simulator.script import Script
from workers.onebox.simulator.server import Simulator

TIMEOUT_SECONDS = 60.0
OPENAI = ("gpt-4o", "gpt-5", "gpt-audio", "text-embedding-3-small")
CLAUDE = "claude-sonnet-4-5"
#: The prices of Qwen 3.7 Max at DashScope, behind a server with OpenAI's API.
QWEN = {
    "input_cost_per_token": 2.5e-6,
    "cache_read_input_token_cost": 5e-7,
    "explicit_cache_read_input_token_cost": 2.5e-7,
    "cache_creation_input_token_cost": 3.125e-6,
    "output_cost_per_token": 7.5e-6,
}
CONFIG: dict[str, Any] = {
    "providers": {
        name: {
            "litellm_provider": name,
            "api_key": "os.environ/TEST_KEY",
            "api_base": f"os.environ/TEST_{name.upper()}",
        }
        for name in ("openai", "anthropic", "openrouter")
    },
    "deployments": [
        *(
            {"id": name, "model": name, "provider": "openai", "upstream": name, "batch": True}
            for name in OPENAI
        ),
        {
            "id": CLAUDE,
            "model": CLAUDE,
            "provider": "anthropic",
            "upstream": CLAUDE,
            "batch": True,
        },
        {
            "id": "routed",
            "model": "routed",
            "provider": "openrouter",
            "upstream": "openai/gpt-4o",
        },
        {
            "id": "qwen",
            "model": "qwen",
            "provider": "openai",
            "upstream": "qwen",
            "model_info": QWEN,
        },
        {
            "id": "thinker",
            "model": "thinker",
            "provider": "openai",
            "upstream": "a-model-of-no-list",
            "price": {"input": "1", "output": "10", "reasoning": "10"},
        },
    ],
    "batch": {"max_wait": 0, "aggregate_interval": 0.1, "poll_interval": 0.1},
    "tenants": {"default": {"monthly_budget": "1000"}, "tight": {"monthly_budget": "0.05"}},
    "routing": {"num_retries": 0},
}
CACHED = {
    "prompt_tokens": 10_000,
    "prompt_tokens_details": {"cached_tokens": 9000},
    "completion_tokens": 100,
    "total_tokens": 10_100,
}
THOUSAND = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}


@dataclass(frozen=True)
class Row:
    """A request, what its provider reports, and what it costs."""

    model: str
    #: The usage, merged into the answer; the other values of the answer.
    usage: dict[str, Any]
    nanousd: int
    answer: dict[str, Any] = field(default_factory=dict)
    #: Fields of the request.
    fields: dict[str, Any] = field(default_factory=dict)
    #: What the receipt's usage has besides the totals.
    kinds: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "cached input": Row("gpt-4o", CACHED, 14_750_000, kinds={"cached_input_tokens": 9000}),
    "cached input in a batch": Row("gpt-5", CACHED, 1_687_500, fields={"lane": "batch"}),
    "cache write": Row(
        CLAUDE,
        {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "output_tokens": 550},
        54_399_000,
        kinds={"text_input_tokens": 3, "cache_write_tokens": 12_304},
    ),
    "cache write of an hour": Row(
        CLAUDE,
        {
            "input_tokens": 3,
            "cache_creation_input_tokens": 1000,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1000},
            "cache_read_input_tokens": 100,
            "output_tokens": 10,
        },
        9_000 + 6_000_000 + 30_000 + 150_000,
        kinds={"cache_write_1h_tokens": 1000, "cached_input_tokens": 100},
    ),
    "cache write in a batch": Row(
        CLAUDE,
        {"input_tokens": 3, "cache_creation_input_tokens": 12_304, "output_tokens": 550},
        27_199_500,
        fields={"lane": "batch"},
    ),
    "sound": Row(
        "gpt-audio",
        {
            "prompt_tokens": 6020,
            "prompt_tokens_details": {"audio_tokens": 6000},
            "completion_tokens": 50,
            "total_tokens": 6070,
        },
        192_550_000,
        kinds={"audio_input_tokens": 6000},
    ),
    "priority": Row(
        "gpt-4o",
        THOUSAND,
        21_250_000,
        {"service_tier": "priority"},
        {"service_tier": "priority"},
        {"service_tier": "priority"},
    ),
    "priority, served at default": Row(
        "gpt-4o",
        THOUSAND,
        12_500_000,
        {"service_tier": "default"},
        {"service_tier": "priority"},
        {"service_tier": "default"},
    ),
    "flex": Row(
        "gpt-5",
        THOUSAND,
        5_625_000,
        {"service_tier": "flex"},
        {"service_tier": "flex"},
        {"service_tier": "flex"},
    ),
    "embedding": Row("text-embedding-3-small", {"prompt_tokens": 9, "total_tokens": 9}, 180),
    "embedding in a batch": Row(
        "text-embedding-3-small",
        {"prompt_tokens": 9, "total_tokens": 9},
        90,
        fields={"lane": "batch"},
    ),
    "explicit cache": Row(
        "qwen",
        {
            "prompt_tokens": 3019,
            "prompt_tokens_details": {
                "cached_tokens": 2048,
                "cache_creation_input_tokens": 900,
                "cache_type": "ephemeral",
            },
            "completion_tokens": 104,
            "total_tokens": 3123,
        },
        4_282_000,
        kinds={"explicit_cached_input_tokens": 2048, "cache_write_tokens": 900},
    ),
    "bill of the provider": Row("routed", THOUSAND | {"cost": 0.0042}, 4_200_000),
    "reasoning apart": Row(
        "thinker",
        {
            "prompt_tokens": 10_120,
            "completion_tokens": 1499,
            "completion_tokens_details": {"reasoning_tokens": 2809},
            "total_tokens": 14_428,
        },
        10_120_000 + 43_080_000,
        kinds={"text_output_tokens": 1499, "reasoning_tokens": 2809},
    ),
}
#: Requests whose answers have no usage, by name: the model, and fields of the request.
WITHOUT_USAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "no usage": ("gpt-4o", {}),
    "no usage in a stream": ("gpt-4o", {"stream": True}),
    "no usage of an embedding": ("text-embedding-3-small", {}),
    "no usage of a line": ("gpt-4o", {"lane": "batch"}),
}
#: Answers that are as long as they may be, at a tier that costs 1.7 times as much.
LONG = {"prompt_tokens": 100, "completion_tokens": 1000, "total_tokens": 1100}
LONG_NANOUSD = 100 * 4250 + 1000 * 17_000
STREAMED = [name for name, row in ROWS.items() if "embedding" not in name and "batch" not in name]


def request(name: str, model: str, limit: int = 5000, **fields: Any) -> Request:
    """A request that its script knows by its text."""
    usual = {"lane": "realtime", "tenant_id": "t"} | fields
    text = f"<{name}> {'word ' * 30}"
    if model.startswith("text-embedding"):
        return EmbeddingRequest(model=model, input=text, **usual)
    messages = [{"role": "user", "content": text}]
    return CompletionRequest(model=model, messages=messages, max_completion_tokens=limit, **usual)


def scripts() -> list[Script]:
    """An answer with the row's usage for each request, streamed or not, and for each line."""
    found = [
        Script(scope=scope, contains=f"<{name}>", merge={"usage": row.usage, **row.answer})
        for name, row in ROWS.items()
        for scope in ("call", "line")
    ]
    found.append(Script(contains="<tight>", merge={"usage": LONG, "service_tier": "priority"}))
    return found + [
        Script(scope=scope, contains=f"<{name}>", merge={"usage": None})
        for name in WITHOUT_USAGE
        for scope in ("call", "line")
    ]


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, Simulator]]:
    models = {name: Model(kind="embedding" if "embed" in name else "chat") for name in OPENAI}
    others = ("a-model-of-no-list", "openai/gpt-4o", "qwen", CLAUDE)
    models |= {name: Model() for name in others}
    profile = Profile(models=models, batch=BatchProfile())
    with (
        Simulator(profile) as openai,
        Simulator(profile, app=AnthropicApp) as anthropic,
    ):
        for simulator in (openai, anthropic):
            simulator.script(*scripts())
        yield {"openai": openai, "anthropic": anthropic}


def all_answered(fleet: Fleet, tickets: Iterable[Ticket]) -> bool:
    """Send beat's tasks; return whether each request has its result."""
    for task in ("scheduler.aggregate", "scheduler.poll"):
        fleet.app.send_task(task, queue="scheduler")
    return all(fleet.status(ticket) in ("SUCCESS", "FAILURE") for ticket in tickets)


@pytest.fixture(scope="module")
def fleet(
    providers: dict[str, Simulator],
    valkey_url: str,
    start_worker: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """A client of a realtime worker and a batch worker."""
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    folder: Path = tmp_path_factory.mktemp("prices")
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    env = {
        "FLEET_REDIS_URL": valkey_url,
        "FLEET_CONFIG": str(file),
        "FLEET_DATA_DIR": str(folder),
        "TEST_KEY": "x",
        "TEST_OPENAI": providers["openai"].url,
        "TEST_OPENROUTER": providers["openai"].url,
        "TEST_ANTHROPIC": providers["anthropic"].url.removesuffix("/v1"),
    }
    with ExitStack() as stack:
        stack.enter_context(start_worker("prices", app="workers.realtime.app", env=env))
        stack.enter_context(start_worker("prices-batch", app="scheduler.app", env=env))
        yield stack.enter_context(Fleet(valkey_url))


@pytest.fixture(scope="module")
def answers(fleet: Fleet) -> dict[str, Completion]:
    """The answer to each request by its name; one of a stream has " streamed" at its end."""
    requests = {
        **{name: request(name, row.model, **row.fields) for name, row in ROWS.items()},
        **{
            f"{name} streamed": request(name, ROWS[name].model, stream=True, **ROWS[name].fields)
            for name in STREAMED
        },
        **{name: request(name, model, **fields) for name, (model, fields) in WITHOUT_USAGE.items()},
    }
    tickets = dict(zip(requests, fleet.submit_many(list(requests.values())), strict=True))
    eventually(partial(all_answered, fleet, tickets.values()), TIMEOUT_SECONDS)
    return {name: fleet.result(ticket, 0) for name, ticket in tickets.items()}


@pytest.mark.parametrize("name", [*ROWS, *(f"{name} streamed" for name in STREAMED)])
def test_an_answer_costs_what_its_kinds_of_tokens_and_its_tier_cost(
    answers: dict[str, Completion], name: str
) -> None:
    row, receipt = ROWS[name.removesuffix(" streamed")], answers[name].receipt
    assert receipt.cost_nanousd == row.nanousd
    assert row.kinds.items() <= receipt.usage.to_json().items()
    assert not receipt.estimated


def test_the_budget_has_the_costs_of_all_answers(
    fleet: Fleet, answers: dict[str, Completion]
) -> None:
    spent = fleet.budget("t").month
    assert spent.reserved_nanousd == 0
    assert spent.spent_nanousd == sum(one.receipt.cost_nanousd for one in answers.values())


def test_a_budget_is_not_exceeded_when_answers_cost_the_priority_tier(fleet: Fleet) -> None:
    receipts = []
    for _ in range(6):
        with suppress(BudgetExceeded):
            ask = request("tight", "gpt-4o", tenant_id="tight", service_tier="priority", limit=1000)
            receipts.append(fleet.submit(ask))
    costs = [fleet.result(one, TIMEOUT_SECONDS).receipt.cost_nanousd for one in receipts]
    assert costs == [LONG_NANOUSD] * 2
    assert fleet.budget("tight").month.spent_nanousd == 2 * LONG_NANOUSD <= 50_000_000


def test_a_dearer_tier_saves_nothing_and_a_cheaper_one_half(answers: dict[str, Completion]) -> None:
    assert answers["priority"].receipt.saving_nanousd == 0
    assert answers["flex"].receipt.saving_nanousd == 5_625_000


@pytest.mark.parametrize("name", WITHOUT_USAGE)
def test_an_answer_without_usage_costs_an_estimate_that_is_marked(
    answers: dict[str, Completion], name: str
) -> None:
    receipt = answers[name].receipt
    assert receipt.estimated
    assert 30 <= receipt.input_tokens <= 120
    assert receipt.cost_nanousd > 0

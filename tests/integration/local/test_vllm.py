"""vLLM as an engine of the local lane: what the simulated engine does not have."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from config.engine import EngineConfig
from config.engine_parameters import ENGINE_PARAMETERS, NOT_FOR_REQUESTS
from config.fleet import FleetConfig
from config.requests import RequestPolicy
from config.settings import ROOT
from primarch_fleet import CompletionRequest
from primarch_fleet.errors import ConfigError, EngineError, InvalidRequest
from tasks.privacy import ENGINE, Privacy
from tests.support import parameters
from tests.support.engines import (
    CHAT,
    END_OF_ANSWER,
    VLLM_MODEL,
    Subject,
    config,
    on_vllm,
    processes,
    question,
    text,
)
from tests.support.promql import VLLM_SAMPLES
from tests.support.workers import eventually
from workers.local import engines
from workers.onebox.ports import free_port

pytestmark = on_vllm

ADAPTER = "tested-adapter"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_the_parameters_of_engines_are_the_fields_of_vllm_s_requests() -> None:
    from workers.local.engines.vllm import HANDLERS  # noqa: PLC0415 - needs vLLM

    for endpoint, names in ENGINE_PARAMETERS.items():
        fields = set(HANDLERS[endpoint].kind.model_fields)
        assert names == fields - NOT_FOR_REQUESTS


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random weights, large enough to change the model's answers."""
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file

    model = json.loads((Path(VLLM_MODEL) / "config.json").read_text())
    width, rank = model["hidden_size"], 8
    random = torch.Generator().manual_seed(1)
    shapes = {"lora_A": (rank, width), "lora_B": (width, rank)}
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{name}.weight": torch.randn(
            shape, generator=random
        )
        for layer in range(model["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    folder = tmp_path_factory.mktemp("adapter")
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def subject(adapter: Path) -> Iterator[Subject]:
    """The engine with many of the settings of fleet.yaml."""
    subject = Subject(
        "vllm",
        tool_call_parser="hermes",
        lora_modules={ADAPTER: str(adapter)},
        engine_args={"max_logprobs": 3},
    )
    yield subject
    subject.close()


def test_an_answer_follows_its_json_schema(subject: Subject) -> None:
    schema = {"name": "place", "schema": WEATHER["function"]["parameters"]}
    response_format = {"type": "json_schema", "json_schema": schema}
    answer = subject.chat("Where is the Colosseum?", response_format=response_format)
    assert json.loads(text(answer))["city"] in {"Paris", "Rome"}


def test_a_required_tool_is_called(subject: Subject) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = subject.chat(
        "How is it in Rome?", tools=[WEATHER], tool_choice=choice, max_tokens=200
    ).body
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Rome"}


def test_tool_choice_auto_allows_an_answer_without_a_call(subject: Subject) -> None:
    body = subject.chat("What is 2+2?", tools=[WEATHER], tool_choice="auto").body
    assert body["choices"][0]["finish_reason"] in {"stop", "length", "tool_calls"}


def test_each_token_has_its_log_probabilities(subject: Subject) -> None:
    body = subject.chat(logprobs=True, top_logprobs=2, max_tokens=3).body
    tokens = body["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


def test_a_setting_in_engine_args_reaches_vllm(subject: Subject) -> None:
    with pytest.raises(InvalidRequest, match="3"):  # engine_args: max_logprobs
        subject.chat(logprobs=True, top_logprobs=5)


def test_a_stop_word_ends_the_answer_and_is_left_out(subject: Subject) -> None:
    answer = subject.chat("Count from 1 to 9.", stop=["5"], temperature=0, max_tokens=100)
    assert answer.body["choices"][0]["finish_reason"] == "stop"
    assert "5" not in text(answer)


def test_waiting_requests_run_by_priority(subject: Subject) -> None:
    """All slots but one are taken until the end of the test."""
    finished: list[int] = []

    async def ask(priority: int) -> None:
        await subject.engine.answer(CHAT, question("Name one animal", max_tokens=2), priority)
        finished.append(priority)

    async def ask_all() -> None:
        endless = question("Count", max_tokens=1500, logit_bias={END_OF_ANSWER: -100})
        taken = config("vllm").max_num_seqs - 1
        holders = [subject.engine.stream(CHAT, endless) for _ in range(taken)]
        await asyncio.gather(*map(anext, holders))  # each has its slot
        async with asyncio.TaskGroup() as group:
            first = group.create_task(ask(0))
            while subject.engine.running < taken + 1:  # noqa: ASYNC110 - engines send no event
                await asyncio.sleep(0.001)
            for priority in (6, 6, 3, 3, 0, 0):
                group.create_task(ask(priority))
            await first
        await asyncio.gather(*(holder.aclose() for holder in holders))

    subject.run(ask_all())
    assert finished == [0, 0, 0, 3, 3, 6, 6]


def test_an_adapter_answers_by_its_own_model_name(subject: Subject) -> None:
    base = subject.chat(temperature=0)
    adapted = subject.chat(temperature=0, model=ADAPTER)
    assert (base.body["model"], adapted.body["model"]) == ("tested", ADAPTER)
    assert text(base) != text(adapted)


def test_vllms_metrics_are_in_the_registry_of_the_process(subject: Subject) -> None:
    subject.chat()
    names = {sample.name for metric in REGISTRY.collect() for sample in metric.samples}
    assert names >= VLLM_SAMPLES


def counted(name: str) -> float:
    """The value of one of vLLM's counters."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def cached_tokens(subject: Subject, content: str, salt: str) -> float:
    """The prompt tokens that a question found in the prefix cache."""
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    queries, hits = map(counted, names)
    subject.chat(content, max_tokens=1, cache_salt=salt)
    eventually(lambda: counted(names[0]) > queries)
    return counted(names[1]) - hits


def test_tenants_find_nothing_of_each_other_in_the_prefix_cache(subject: Subject) -> None:
    prompt = "Count the words of this text. " * 60
    privacy = Privacy(RequestPolicy(), b"key")
    salts = [
        privacy.fields(CompletionRequest(**question(prompt), tenant_id=tenant), ENGINE)[
            "cache_salt"
        ]
        for tenant in ("a", "a", "b")
    ]
    first, again, other = (cached_tokens(subject, prompt, salt) for salt in salts)
    assert first == other == 0
    assert again > 0


#: What vLLM accepts only with an option of its own.
NEEDS_OPTION = {"mm_processor_kwargs"}


def test_a_parameter_that_needs_an_option_of_vllm_is_refused_by_name(subject: Subject) -> None:
    for name in NEEDS_OPTION:
        with pytest.raises(InvalidRequest, match=name):
            subject.chat(**{name: parameters.ENGINE[name]})


@pytest.mark.parametrize("name", sorted(parameters.ENGINE.keys() - NEEDS_OPTION))
def test_each_parameter_of_engines_is_accepted(subject: Subject, name: str) -> None:
    assert subject.chat(**{name: parameters.ENGINE[name]}, max_tokens=4).body["choices"]


def test_min_tokens_and_stream_options_have_their_effect(subject: Subject) -> None:
    body = subject.chat("Say yes.", min_tokens=20, max_tokens=24).body
    assert body["usage"]["completion_tokens"] >= 20
    options = {"continuous_usage_stats": True}
    chunks = subject.stream("Say yes.", max_tokens=4, stream_options=options)
    assert all(chunk["usage"] for chunk in chunks if chunk["choices"])
    assert chunks[-1]["usage"]["completion_tokens"] <= 4


@pytest.fixture(scope="module")
def server(adapter: Path) -> Iterator[str]:
    """vLLM's own OpenAI server with the same model and settings."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [f"--model={VLLM_MODEL}", "--served-model-name=tested", "--dtype=float32"]
    command += ["--enforce-eager", "--max-model-len=2048", "--max-num-seqs=32"]
    command += [f"--port={port}", "--host=127.0.0.1"]
    command += ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--max-logprobs=3"]
    command += [
        "--scheduling-policy=priority",
        "--enable-lora",
        f"--lora-modules={ADAPTER}={adapter}",
    ]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, "vLLM's server ended"
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
        except OSError:
            return False
        return True

    try:
        eventually(healthy, 180)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def post_chat(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return dict(json.load(response))


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0},
        {"temperature": 1, "seed": 7, "n": 2},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "tools": [WEATHER], "tool_choice": "required"},
        {"temperature": 0, "response_format": {"type": "json_object"}},
    ],
)
def test_the_body_equals_that_of_vllms_own_server(
    subject: Subject, server: str, parameters: dict[str, Any]
) -> None:
    body = question("What is 2+2?", **parameters)
    assert comparable(subject.run(subject.engine.answer(CHAT, body)).body) == comparable(
        post_chat(server, body)
    )


def comparable(body: dict[str, Any]) -> dict[str, Any]:
    """A response without the fields that differ between calls: ids, times and vLLM's metrics."""
    body = json.loads(json.dumps(body))
    body.pop("metrics", None)
    del body["id"], body["created"]
    for choice in body["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            del call["id"]
    return body


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "/nowhere"}, "/nowhere"),
        ({"dtype": "float13"}, "float13"),
        ({"engine_args": {"max_seq_len": 1}}, "max-seq-len"),
        ({"engine_args": {"block_size": "many"}}, "block-size"),
        ({"tool_call_parser": "nobodys"}, "nobodys"),
    ],
)
def test_a_setting_that_vllm_refuses_is_a_config_error(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        asyncio.run(engines.start(config("vllm", **change)))
    assert "tested" in str(caught.value)


def test_too_little_memory_is_an_error_that_says_so() -> None:
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    tested = config("vllm")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "4000"
    with pytest.raises(EngineError, match=r"tested: vLLM did not start: .*4000\.0 GiB"):
        asyncio.run(engines.start(tested))


def test_a_missing_adapter_is_an_error_and_leaves_no_process() -> None:
    resource_tracker.ensure_running()  # Python's own process, which keeps running
    before = processes()
    with pytest.raises(EngineError, match="nowhere"):
        asyncio.run(engines.start(config("vllm", lora_modules={ADAPTER: "/nowhere"})))
    eventually(lambda: processes() <= before, 10)


def test_shared_settings_have_vllms_names_and_defaults() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415

    known = {field.name: field.default for field in dataclasses.fields(AsyncEngineArgs)}
    ours = {name: field.default for name, field in EngineConfig.model_fields.items()}
    shared = set(known) & set(ours) - {
        "model",
        "max_num_seqs",
    }  # vLLM's depends on hardware
    assert len(shared) > 10
    assert {name: known[name] for name in shared} == {name: ours[name] for name in shared}


def test_the_agents_policy_for_engines_becomes_vllms_arguments() -> None:
    from workers.local.engines.vllm import _arguments  # noqa: PLC0415

    given = yaml.safe_load((ROOT / "tests" / "data" / "routing_orchestration.yaml").read_text())
    file = yaml.safe_load((ROOT / "config" / "fleet.yaml").read_text())
    own = {"model": "own", "engine": "vllm", "path": "any", "price": {"input": 1, "output": 2}}
    args = _arguments(FleetConfig.model_validate(file | {"engines": [own]} | given).engine())
    assert args.tensor_parallel_size == 4
    assert args.max_num_seqs == 128
    assert args.enable_prefix_caching is True
    assert args.gpu_memory_utilization == 0.9

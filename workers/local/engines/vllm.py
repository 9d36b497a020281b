# mypy: disable-error-code="import-not-found"
"""Runs a model on this machine's hardware with vLLM and the handlers of its OpenAI server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import uuid
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel, ValidationError
from starlette.datastructures import State

# vLLM documents its command line and its HTTP API only. These imports run its OpenAI server's
# handlers without HTTP; they hold for the exact version that `make engine` installs.
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest as VllmResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from config.engine import EngineConfig
from config.engine_parameters import NOT_FOR_REQUESTS
from primarch_fleet.errors import (
    ConfigError,
    ContextWindowExceeded,
    EngineError,
    FleetError,
    InvalidRequest,
)
from primarch_fleet.requests import CompletionRequest, EmbeddingRequest, ResponsesRequest
from primarch_fleet.validation import Location, explain
from tasks.failure_reasons import Reason
from tasks.provider_errors import classify
from workers.local.engines.base import Answer
from workers.local.engines.process_guard import KillOnParentExit
from workers.local.engines.stderr_tail import StderrTail

logger = logging.getLogger(__name__)

#: The settings that have the same name in fleet.yaml and in vLLM.
SHARED_SETTINGS = {
    *("tensor_parallel_size", "pipeline_parallel_size"),
    *("max_num_seqs", "max_model_len", "gpu_memory_utilization"),
    *("enable_prefix_caching", "enable_chunked_prefill", "speculative_config", "quantization"),
    *("dtype", "enforce_eager", "tool_call_parser", "reasoning_parser", "max_lora_rank"),
}
#: How long vLLM's processes may take to end before they are killed; less than a worker's
#: shutdown hooks may take.
SHUTDOWN_TIMEOUT_SECONDS = 3.0


async def start(config: EngineConfig) -> VllmEngine:
    """Load the model. Blocks the event loop for seconds to minutes.

    Raises:
        ConfigError: vLLM refuses the model or a setting.
        EngineError: The model does not start on this hardware.
    """
    # The worker has threads: a forked child would inherit their locks, held forever.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # send no usage reports
    started = time.perf_counter()
    args = _arguments(config)
    settings = _settings(config, args)
    with StderrTail() as stderr:
        try:
            engine = await _engine(settings, args)
        except Exception as error:
            message = f"{config.model}: vLLM did not start: {stderr.last_error() or error}"
            raise EngineError(message) from error
    seconds = time.perf_counter() - started
    logger.info("%s loaded in %.0f s", config.model, seconds, extra={"action": "engine_started"})
    return engine


class VllmEngine:
    """One AsyncLLM, which batches the requests that run at the same time."""

    simulated = False

    def __init__(self, llm: AsyncLLM, handlers: State, guard: KillOnParentExit) -> None:
        """`handlers` are those of vLLM's OpenAI server; `guard` holds vLLM's processes."""
        self._llm = llm
        self._handlers = handlers
        self._guard = guard

    @property
    def dead(self) -> bool:
        """True when vLLM's core process has ended."""
        return bool(self._llm.errored)

    @property
    def running(self) -> int:
        """Requests in the engine now; each of several choices counts."""
        return int(self._llm.get_num_unfinished_requests())

    async def answer(self, endpoint: str, body: dict[str, Any], priority: int = 0) -> Answer:
        """Answer with vLLM's own handler of the endpoint."""
        return _answer(await self._call(endpoint, body, priority))

    async def stream(
        self, endpoint: str, body: dict[str, Any], priority: int = 0
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of vLLM's own handler of the endpoint."""
        stream, request_id = STREAMS[endpoint], uuid.uuid4().hex
        options = {name: {**body.get(name, {}), **own} for name, own in stream.options.items()}
        streamed = {"stream": True, "request_id": request_id, **options}
        chunks = await self._call(endpoint, body | streamed, priority)
        try:
            async for chunk in chunks:
                if chunk != END_OF_STREAM:
                    yield stream.read(chunk)
        except FleetError:
            raise
        except Exception as error:  # the handler of responses raises vLLM's own errors
            raise _failure(create_error_response(error).error) from error
        finally:  # vLLM would abort it only when `chunks` is garbage-collected
            await self._llm.abort(stream.engine_id.format(request_id))

    async def close(self) -> None:
        """Shut vLLM down and kill what is left of its processes."""
        await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_TIMEOUT_SECONDS)
        self._guard.close()
        # Delete now: the destructor fails with a traceback when it runs at interpreter exit.
        del self._llm, self._handlers

    async def _call(self, endpoint: str, body: dict[str, Any], priority: int) -> Any:
        """Return the response of the endpoint's handler. Raises what `Engine` documents."""
        name, method, kind = HANDLERS.get(endpoint, ("", "", object))
        handler = getattr(self._handlers, name, None)
        if handler is None:
            raise InvalidRequest("model: vLLM does not serve it for this kind of request")
        return await _response(getattr(handler, method), kind, body, priority)


class _Handler(NamedTuple):
    """A handler of vLLM's server: its name in the server's state, its method, and its request."""

    name: str
    method: str
    kind: type[Any]


HANDLERS = {
    CompletionRequest.endpoint: _Handler(
        "openai_serving_chat", "create_chat_completion", ChatCompletionRequest
    ),
    ResponsesRequest.endpoint: _Handler(
        "openai_serving_responses", "create_responses", VllmResponsesRequest
    ),
    EmbeddingRequest.endpoint: _Handler(
        "serving_embedding", "__call__", EmbeddingCompletionRequest
    ),
}


class _Stream(NamedTuple):
    """How a handler streams."""

    #: What a request that streams has in these parameters, besides its own.
    options: dict[str, dict[str, Any]]
    #: The engine's id of a request, from the request's own.
    engine_id: str
    #: Converts what the handler yields to OpenAI's chunk.
    read: Callable[[Any], dict[str, Any]]


def _chat_chunk(text: str) -> dict[str, Any]:
    """A chunk in OpenAI's form. Raises what `Engine` documents if it is an error of vLLM."""
    chunk: dict[str, Any] = json.loads(text.removeprefix("data: "))
    if "error" in chunk:
        raise _failure(ErrorInfo(**chunk["error"]))
    chunk.pop("metrics", None)
    return chunk


def _response_event(event: Any) -> dict[str, Any]:
    """An event in OpenAI's form."""
    body: dict[str, Any] = event.model_dump(mode="json", by_alias=True)
    return body


#: The last thing that the chat handler yields.
END_OF_STREAM = "data: [DONE]\n\n"
STREAMS = {
    CompletionRequest.endpoint: _Stream(
        {"stream_options": {"include_usage": True}}, "chatcmpl-{}", _chat_chunk
    ),
    ResponsesRequest.endpoint: _Stream({}, "{}_0", _response_event),
}


def _arguments(config: EngineConfig) -> Namespace:
    """The arguments of `vllm serve`, parsed by its own parser."""
    settings: dict[str, Any] = {
        "model": config.path,
        "served_model_name": config.model,
        "runner": "pooling" if config.kind == "embedding" else "auto",
        "scheduling_policy": "priority",
        "enable_per_request_metrics": True,
        "enable_auto_tool_choice": bool(config.tool_call_parser),
        "enable_lora": bool(config.lora_modules),
        "lora_modules": [f"{name}={path}" for name, path in config.lora_modules.items()],
        **config.model_dump(include=SHARED_SETTINGS),
        **config.engine_args,
    }
    parser = make_arg_parser(FlexibleArgumentParser())

    def refuse(message: str) -> NoReturn:  # argparse would exit the process
        raise ConfigError(f"engines: {config.model}: vLLM refuses: {message}")

    parser.error = refuse
    args: Namespace = parser.parse_args(list(_command_line(settings)))
    return args


def _command_line(settings: dict[str, Any]) -> Iterator[str]:
    """Settings as command-line arguments; empty ones are left to vLLM's defaults."""
    for name, value in settings.items():
        flag = name.replace("_", "-")
        match value:
            case None | "" | []:
                continue
            case bool():
                yield f"--{flag}" if value else f"--no-{flag}"
            case dict():
                yield from (f"--{flag}", json.dumps(value))
            case list():
                yield from (f"--{flag}", *map(str, value))
            case _:
                yield f"--{flag}={value}"


def _settings(config: EngineConfig, args: Namespace) -> VllmConfig:
    try:
        validate_parsed_serve_args(args)
        # vLLM's defaults depend on the usage context.
        settings = AsyncEngineArgs.from_cli_args(args).create_engine_config(
            UsageContext.OPENAI_API_SERVER
        )
        validate_api_server_args(args)
    except Exception as error:  # pydantic's, Hugging Face's, torch's or vLLM's own
        why = explain(error, _field) if isinstance(error, ValidationError) else str(error)
        message = f"engines: {config.model}: vLLM refuses {config.path!r}: {why}"
        raise ConfigError(message) from error
    return settings


async def _engine(settings: VllmConfig, args: Namespace) -> VllmEngine:
    handlers = State()
    with _sigint_blocked(), KillOnParentExit() as guard:
        llm = AsyncLLM.from_vllm_config(settings)
        await init_app_state(llm, handlers, args, await llm.get_supported_tasks())
    return VllmEngine(llm, handlers, guard)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started within the block ignore Ctrl-C: the worker stops them after its drain."""
    resource_tracker.ensure_running()  # started within the block, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _response(
    handle: Callable[[Any], Awaitable[Any]], kind: type[Any], body: dict[str, Any], priority: int
) -> Any:
    """The response of vLLM's server. Raises what `Engine` documents."""
    reserved = NOT_FOR_REQUESTS - {"request_id"}  # which identifies a stream
    if unknown := sorted((body.keys() - kind.model_fields.keys()) | (body.keys() & reserved)):
        raise InvalidRequest(f"{', '.join(unknown)}: vLLM does not support it")
    try:
        response = await handle(kind(**body, priority=priority))
    except ValidationError as error:
        raise InvalidRequest(explain(error, _field)) from None
    except Exception as error:
        raise _failure(create_error_response(error).error) from error
    task = asyncio.current_task()
    if task and task.cancelling():
        # vLLM has aborted the request, but returns the cancellation as an ordinary failure.
        raise asyncio.CancelledError
    if isinstance(response, ErrorResponse):
        raise _failure(response.error)
    return response


def _answer(response: Any) -> Answer:
    """The body of a response: a model of pydantic, or of HTTP for embeddings."""
    if not isinstance(response, BaseModel):
        return Answer(json.loads(response.body), None)
    # The field `metrics` is vLLM's own: read it, and leave it out of the body.
    metrics = getattr(response, "metrics", None)
    body = response.model_dump(mode="json", by_alias=True, exclude={"metrics"})
    return Answer(body, _time_to_first_token(metrics))


def _failure(error: ErrorInfo) -> FleetError:
    """The fleet's error for vLLM's; status 501 means that a parameter is not supported."""
    if classify(error.code, {"message": error.message}).reason is Reason.CONTEXT_WINDOW:
        return ContextWindowExceeded(error.message)
    refused = error.code < 500 or error.code == 501
    return InvalidRequest(error.message) if refused else EngineError(error.message)


def _field(location: Location) -> str:
    """The field alone: the rest of the path is what vLLM tried for it."""
    return str(location[0]) if location else ""


def _time_to_first_token(metrics: Any) -> float | None:
    """Seconds including the engine's queue; None for several choices: vLLM does not measure it."""
    if metrics is None or metrics.time_to_first_token_ms is None:
        return None
    return float((metrics.queue_time_ms or 0) + metrics.time_to_first_token_ms) / 1000

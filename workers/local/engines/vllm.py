# mypy: disable-error-code="import-not-found"
"""A model on this machine's hardware, run by vLLM behind the code of vLLM's own OpenAI server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from argparse import Namespace
from collections.abc import Awaitable
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from config.fleet import Engine as EngineConfig
from primarch_fleet.errors import ConfigError, EngineError, FleetError, InvalidRequest
from workers.local.engines.base import Answer

logger = logging.getLogger(__name__)

#: What fleet.yaml and vLLM call by the same name.
SHARED = {
    "max_num_seqs",
    "max_model_len",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "enable_prefix_caching",
    "dtype",
    "enforce_eager",
}
#: Seconds that vLLM's processes have to end before they are killed: less than a worker's hooks have.
SHUTDOWN_TIMEOUT = 3.0


async def start(config: EngineConfig) -> VllmEngine:
    """Load the model. Blocks the loop, for seconds to minutes.

    Raises ConfigError for a model or a setting that vLLM refuses, and EngineError when the model
    does not start on this hardware.
    """
    # A worker has threads: a forked child would inherit their locks, held for ever.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    started = time.perf_counter()
    args = _arguments(config)
    llm = _load(config, args)
    endpoints = State()
    await init_app_state(llm, endpoints, args, await llm.get_supported_tasks())
    seconds = time.perf_counter() - started
    logger.info(
        "%s is loaded after %.0f s", config.model, seconds, extra={"action": "engine_started"}
    )
    return VllmEngine(llm, endpoints)


class VllmEngine:
    """One AsyncLLM. It batches by itself whatever is in it at the same time."""

    simulated = False

    def __init__(self, llm: AsyncLLM, endpoints: State) -> None:
        """`endpoints` holds the handlers of vLLM's OpenAI server."""
        self._llm = llm
        self._endpoints = endpoints

    async def chat(self, body: dict[str, Any]) -> Answer:
        response = await _response(self._chat(body))
        # vLLM measures for us, in a field that its server leaves empty unless told otherwise.
        metrics, response.metrics = response.metrics, None
        return Answer(response.model_dump(mode="json"), _time_to_first_token(metrics))

    async def embed(self, body: dict[str, Any]) -> Answer:
        response = await _response(self._embed(body))
        return Answer(json.loads(response.body), None)

    async def close(self) -> None:
        await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_TIMEOUT)

    async def _chat(self, body: dict[str, Any]) -> Any:
        handler = getattr(self._endpoints, "openai_serving_chat", None)
        if handler is None:
            raise InvalidRequest("model: vLLM has no chat completions of it")
        return await handler.create_chat_completion(ChatCompletionRequest(**body))

    async def _embed(self, body: dict[str, Any]) -> Any:
        handler = getattr(self._endpoints, "serving_embedding", None)
        if handler is None:
            raise InvalidRequest("model: vLLM has no embeddings of it")
        return await handler(EmbeddingCompletionRequest(**body))


def _arguments(config: EngineConfig) -> Namespace:
    """What `vllm serve` would be started with."""
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    vars(args).update(
        model=config.path,
        served_model_name=[config.model],
        runner="pooling" if config.kind == "embedding" else "generate",
        enable_per_request_metrics=True,
        **config.model_dump(include=SHARED),
    )
    return args


def _load(config: EngineConfig, args: Namespace) -> AsyncLLM:
    try:
        vllm_config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except Exception as error:  # pydantic's, Hugging Face's, vLLM's, torch's
        raise ConfigError(f"engines: {config.model}: {_first_line(error)}") from error
    try:
        return AsyncLLM.from_vllm_config(vllm_config)
    except Exception as error:
        raise EngineError(f"{config.model} does not start; vLLM's log says why: {error}") from error


async def _response(call: Awaitable[Any]) -> Any:
    """vLLM's response. Raises as the Engine promises."""
    try:
        response = await call
    except FleetError:
        raise
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from None
    except Exception as error:
        response = create_error_response(error)
    task = asyncio.current_task()
    if task and task.cancelling():
        # vLLM has aborted the request, but answers a cancellation like any other failure.
        raise asyncio.CancelledError
    if isinstance(response, ErrorResponse):
        raise _failure(response.error)
    return response


def _failure(error: ErrorInfo) -> FleetError:
    return InvalidRequest(error.message) if error.code < 500 else EngineError(error.message)


def _explain(error: ValidationError) -> str:
    """What is wrong with which field, without its value: prompts stay private."""
    items = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(dict.fromkeys(f"{item['loc'][0]}: {item['msg']}" for item in items))


def _time_to_first_token(metrics: Any) -> float | None:
    """Seconds; None for several choices, where vLLM measures none."""
    if metrics is None or metrics.time_to_first_token_ms is None:
        return None
    return float((metrics.queue_time_ms or 0) + metrics.time_to_first_token_ms) / 1000

"""Fits each call to the deployment that LiteLLM's Router has chosen for it.

Adds what depends on the provider: `extra_body`, the end user, headers. Refuses by name what LiteLLM
would drop without a word, and what its own arguments would be mistaken for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, NamedTuple

import litellm
from litellm.exceptions import UnsupportedParamsError
from litellm.types.utils import CallTypes, is_litellm_owned_kwarg

from primarch_fleet.errors import InvalidRequest
from primarch_fleet.requests import Request, ResponsesRequest
from tasks.privacy import Privacy
from workers.realtime import responses_parameters
from workers.realtime.dropped_parameters import (
    NEED_TOOLS,
    dropped_fields,
    dropped_options,
    dropped_parameters,
    dropped_parts,
    dropped_tools,
    kind_of_value,
    may_be_left_out,
    part_kind,
    special_fields,
    tool_type,
)
from workers.realtime.provider_arguments import (
    NO_PARAMETERS,
    OPENAI_BODY,
    OPENAI_SERVERS,
    as_openai,
    needless,
)

logger = logging.getLogger(__name__)

Json = dict[str, Any]
#: Parts of messages, by the role of the message and the kind of the part; and what else of a prompt
#: LiteLLM may drop, by FIELD and its name or as `responses_parameters.special_items` has it.
Parts = dict[tuple[str, str], Json]
#: In place of a role: a field of a message.
FIELD = "field"

#: Arguments that a call that is not sent does not need; some would have side effects.
NOT_FOR_PROBES = {
    *("messages", "input", "metadata", "stream", "stream_options", "api_key", "client", "caching"),
    *("litellm_logging_obj", "litellm_call_id", "litellm_trace_id", "model_info", "num_retries"),
    *("max_retries", "_context_compaction_state", "fallbacks", "routing_strategy", "timeout"),
}
#: LiteLLM's functions whose requests can be built without being sent, by verb.
CALL_TYPES = {"complete": CallTypes.completion, "embed": CallTypes.embedding}
#: Most sets of parameters whose drops are remembered.
MAX_PROBES = 1024
#: Probes at the same time.
MAX_PROBE_THREADS = 2


class Drops(NamedTuple):
    """What LiteLLM would leave out of a call."""

    #: Names.
    parameters: frozenset[str] = frozenset()
    #: What errors call the tools and the parts of the prompt; the name of their field is first.
    others: frozenset[str] = frozenset()


class _Current(NamedTuple):
    """The request whose calls are fitted, and what its calls have in common."""

    calls: ProviderCalls
    request: Request
    #: Its OpenAI fields.
    body: Json
    #: The parameters that LiteLLM may drop, each with what that depends on.
    kinds: tuple[tuple[str, Any], ...]
    parts: Parts
    #: By deployment, the parameters that its configuration dropped.
    dropped: dict[str, list[str]]

    @classmethod
    def of(cls, calls: ProviderCalls, request: Request) -> _Current:
        """Return the facts of a request that each of its calls needs."""
        body = request.openai_body()
        return cls(calls, request, body, _kinds(request, body), dict(_special_parts(request)), {})


class ProviderCalls:
    """Fits the calls of one worker process.

    Args:
        privacy: Adds what providers may learn of tenants and end users.
        allowed_headers: Names of headers that requests may set, in lower case.
    """

    _current: ContextVar[_Current] = ContextVar("provider_call")

    def __init__(self, privacy: Privacy, allowed_headers: tuple[str, ...]) -> None:
        litellm.disable_stop_sequence_limit = True  # else it leaves out the fifth of `stop`
        self._privacy = privacy
        self._allowed_headers = set(allowed_headers)
        self._providers: dict[tuple[str | None, ...], str] = {}
        self._probes: dict[Any, Future[Drops]] = {}
        self._threads = ThreadPoolExecutor(MAX_PROBE_THREADS, thread_name_prefix="probe")

    def begin(self, request: Request) -> Json:
        """Return the arguments for the Router; the calls of this asyncio task will be fitted.

        Raises:
            InvalidRequest: The request sets a header that fleet.yaml does not allow.
        """
        headers = {name.lower() for name in request.extra_headers or ()}
        if refused := sorted(headers - self._allowed_headers):
            raise InvalidRequest(
                f"extra_headers: {', '.join(refused)}: not allowed; fleet.yaml lists the allowed "
                "headers in requests.extra_headers"
            )
        current = _Current.of(self, request)
        self._current.set(current)
        # LiteLLM demands the argument, also of a request without an input.
        no_input = {"input": None} if request.verb == "respond" else {}
        return no_input | _arguments(current.body)

    @classmethod
    async def fit_current(cls, call: Json) -> Json | None:
        """Return the fitted arguments of a call of LiteLLM; None for a call of no request.

        Raises:
            litellm.UnsupportedParamsError: The provider does not support a parameter. The message
                names it.
        """
        current = cls._current.get(None)
        return await current.calls.fit(current, call) if current else None

    @classmethod
    def dropped(cls, deployment_id: str) -> list[str]:
        """Return what a deployment's configuration dropped of the current request's parameters."""
        current = cls._current.get(None)
        return current.dropped.get(deployment_id, []) if current else []

    async def fit(self, current: _Current, call: Json) -> Json:
        """Return the fitted arguments, as `fit_current` does."""
        fitted = self._extended(current, call)
        if probe := self._probe(current, fitted):
            drops = await asyncio.shield(asyncio.wrap_future(probe))
            self._handle_drops(current, fitted, drops)
        return fitted

    def fit_blocking(self, request: Request, params: Mapping[str, Any]) -> Json:
        """Return the arguments of a call to one deployment, fitted. Blocks for LiteLLM's work.

        Args:
            params: LiteLLM's parameters of the deployment, with its `model_info`.

        Raises:
            litellm.UnsupportedParamsError: As `fit_current` does.
        """
        current = _Current.of(self, request)
        fitted = self._extended(current, {**_arguments(current.body), **params})
        if probe := self._probe(current, fitted):
            self._handle_drops(current, fitted, probe.result())
        return fitted

    def _extended(self, current: _Current, call: Json) -> Json:
        """The arguments of a call with what the request and its provider add."""
        request, provider = current.request, self._provider(call)
        fitted = dict(call)
        if request.extra_headers:
            own = call.get("extra_headers") or {}
            fitted["extra_headers"] = {**request.extra_headers, **own}
        if request.verb == "embed" and provider in OPENAI_SERVERS:
            fitted |= as_openai(call)
        if request.verb == "embed" and self._provider(fitted) == "openai":
            # LiteLLM would refuse it, except for text-embedding-3.
            allowed = call.get("allowed_openai_params") or ()
            fitted["allowed_openai_params"] = [*allowed, "dimensions"]
        for name in needless(request.verb, current.body.keys() & call.keys(), fitted, provider):
            del fitted[name]
        self._add_extra(current, fitted, provider)
        return fitted

    def _provider(self, call: Json) -> str:
        """LiteLLM's name of the deployment's provider."""
        account = (call["model"], call.get("custom_llm_provider"), call.get("api_base"))
        if account not in self._providers:
            self._providers[account] = litellm.get_llm_provider(*account)[1]
        return self._providers[account]

    def _add_extra(self, current: _Current, call: Json, provider: str) -> None:
        """Add what OpenAI's API does not have, to the body or as arguments of LiteLLM."""
        request, metadata = current.request, current.body.get("metadata")
        extra = {**(request.extra_body or {}), **self._privacy.fields(request, provider)}
        choice = call.get("tool_choice")
        if provider == "hosted_vllm" and isinstance(choice, dict) and choice.get("custom"):
            # LiteLLM makes functions of the custom tools.
            call["tool_choice"] = {"type": "function", "function": choice["custom"]}
        has_own_choice = request.verb == "complete" and _is_own_choice(call.get("tool_choice"))
        has_chats = call["model_info"].get("mode") != "responses"
        if _goes_into_body(request, provider, call) and (has_chats or not has_own_choice):
            own = {} if metadata is None else {"metadata": metadata}
            if has_own_choice:
                own["tool_choice"] = call.pop("tool_choice")
            call["extra_body"] = {**(call.get("extra_body") or {}), **extra, **own}
            return
        refused = [f"extra_body.{name}" for name in extra if is_litellm_owned_kwarg(name)]
        if has_own_choice:
            refused.append(f"tool_choice of type {call['tool_choice'].get('type')}")
        if metadata is not None:
            refused.append("provider_metadata")
        if refused:
            raise _unsupported(refused, provider, call)
        call.update(extra)

    def _probe(self, current: _Current, call: Json) -> Future[Drops] | None:
        """What LiteLLM would drop from such calls, found once; None if it drops nothing."""
        if current.request.verb not in (*CALL_TYPES, "respond"):
            return None
        dropped_anyway = set(call.get("additional_drop_params") or ())
        names = [name for name, _ in current.kinds if name not in dropped_anyway]
        if not (names or current.parts):
            return None
        deployment_id = call["model_info"].get("id")
        current.dropped[deployment_id] = sorted(dropped_anyway & current.body.keys())
        key = (call["model"], deployment_id, current.kinds, *current.parts)
        if key not in self._probes:
            if len(self._probes) >= MAX_PROBES:
                self._probes.clear()
            self._probes[key] = self._threads.submit(self._finder(current, call, names))
        return self._probes[key]

    def _finder(self, current: _Current, call: Json, names: list[str]) -> Callable[[], Drops]:
        """The search for what LiteLLM drops; it blocks."""
        arguments = {name: call[name] for name in call.keys() - NOT_FOR_PROBES}
        if current.request.verb == "respond":
            own = [name for name in names if name in current.body]
            provider = self._provider(call)
            return partial(_find_response_drops, provider, arguments, own, current.parts)
        call_type = CALL_TYPES[current.request.verb]
        return partial(_find_drops, call_type, arguments, names, current.parts)

    def _handle_drops(self, current: _Current, call: Json, drops: Drops) -> None:
        """Put what LiteLLM would drop into `extra_body`, or refuse it."""
        request, provider = current.request, self._provider(call)
        others = {name: name.partition(" ")[0].rstrip(":") for name in drops.others}
        dropped = drops.parameters | set(others.values())
        if call.get("drop_params") or litellm.drop_params:
            current.dropped[call["model_info"].get("id")] += sorted(dropped)
            return
        can_move = _goes_into_body(request, provider, call)
        moved = dropped & (current.body.keys() - NO_PARAMETERS) if can_move else set()
        if "tools" in moved:
            moved |= NEED_TOOLS & call.keys()
        own = {name for name, parameter in others.items() if parameter not in moved}
        refused = sorted((drops.parameters - moved) | own)
        if refused:
            raise _unsupported(refused, provider, call)
        if moved:
            call["extra_body"] = {**call["extra_body"], **{name: call.pop(name) for name in moved}}


def _arguments(body: Json) -> Json:
    """The arguments for LiteLLM, whose `metadata` is another."""
    return {name: value for name, value in body.items() if name != "metadata"}


def _goes_into_body(request: Request, provider: str, call: Json) -> bool:
    """Whether LiteLLM adds the argument `extra_body` to the body of the call.

    For embeddings it adds unknown arguments; some providers would get a field `extra_body`.
    """
    if request.verb == "respond":
        return responses_parameters.has_responses(provider, call["model"])
    return request.verb != "embed" and provider in OPENAI_BODY


def _is_own_choice(choice: Any) -> bool:
    """Whether a chat's `tool_choice` is an object of OpenAI's API that LiteLLM does not know."""
    if not isinstance(choice, dict) or choice.get("function") is not None:
        return False
    return choice.get("type") not in ("auto", "none", "required")


def _kinds(request: Request, body: Json) -> tuple[tuple[str, Any], ...]:
    """The request's parameters that LiteLLM may drop, each with what that depends on."""
    values = {**(request.extra_body or {}), **body}
    return tuple(
        (name, kind_of_value(name, values[name]))
        for name in sorted(values.keys() - NO_PARAMETERS)
        if not may_be_left_out(name, values[name])
    )


def _none_if_unknown(find: Callable[..., Drops]) -> Callable[..., Drops]:
    """Make a search find no drops where they cannot be found out, which fails no request."""

    @wraps(find)
    def found(*args: Any) -> Drops:
        try:
            return find(*args)
        except Exception as error:
            logger.warning(
                "cannot tell what LiteLLM drops: %s",
                type(error).__name__,
                extra={"action": "drops_unknown"},
            )
            return Drops()

    return found


@_none_if_unknown
def _find_drops(call_type: CallTypes, call: Json, names: list[str], parts: Parts) -> Drops:
    tools = {
        f"tools of type {tool_type(tool)}": {"tools": [tool]} for tool in call.get("tools", ())
    }
    if "web_search_options" in names and "web_search_options" in call:
        tools["web_search_options"] = {"web_search_options": call["web_search_options"]}
    dropped = dropped_parameters(call_type, call, names)
    if call_type is not CallTypes.completion:
        return Drops(dropped)
    fields = [name for role, name in parts if role == FIELD]
    content = {key: part for key, part in parts.items() if key[0] != FIELD}
    prompt = dropped_parts(call, content) | dropped_fields(call, fields)
    options = dropped_options(call, set(names) - dropped)
    return Drops(dropped, prompt | options | dropped_tools(call, tools))


@_none_if_unknown
def _find_response_drops(provider: str, call: Json, names: list[str], parts: Parts) -> Drops:
    model = call["model"]
    dropped = responses_parameters.dropped(provider, model, names)
    if responses_parameters.has_responses(provider, model):
        return Drops(dropped)
    parameters = ResponsesRequest.model_fields.keys() | {"extra_body"}
    chat = {name: call[name] for name in call.keys() - (parameters - {"model"})}
    items = responses_parameters.dropped_items(chat, parts)
    if "tools" not in names:
        return Drops(dropped, items)
    tools = responses_parameters.chat_tools(provider, model, call["tools"])
    choice = call["tool_choice"] if "tool_choice" in names else "auto"
    if choice != "auto" and responses_parameters.drops_tool_choice(choice, tools.values()):
        dropped |= {"tool_choice"}
    return Drops(dropped, items | dropped_tools(chat, tools))


def _special_parts(request: Request) -> Iterator[tuple[tuple[str, str], Json]]:
    """What of a prompt LiteLLM may drop: by role and kind, parts of messages, and references."""
    if isinstance(request, ResponsesRequest):
        yield from responses_parameters.special_items(request)
    for message in getattr(request, "messages", ()):
        role, content = str(message["role"]), message.get("content")
        for part in content if isinstance(content, list) else ():
            if _is_special(part):
                yield (role, part_kind(part)), part
        for name in special_fields(message) if role == "assistant" else ():
            yield (FIELD, name), {}


def _is_special(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") not in (None, "text")


def _unsupported(names: list[str], provider: str, call: Json) -> UnsupportedParamsError:
    message = f"{', '.join(names)}: not supported by {provider} for {call['model']}"
    return UnsupportedParamsError(message=message, llm_provider=provider, model=call["model"])

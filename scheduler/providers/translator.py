"""Translates requests to the form of the provider that serves them, as the realtime lane does.

LiteLLM does the work and is imported on first use: only fleets that need it pay its 190 MB.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from config.provider import Deployment, Provider
from primarch_fleet.requests import CompletionRequest, Request
from scheduler.model.jsonl import TranslatedRequest
from tasks.privacy import Privacy

if TYPE_CHECKING:
    from workers.realtime.prepared_call import CallPreparer

Json = dict[str, Any]

#: Roles of messages that are plain when their content is text and they have no other field.
PLAIN_ROLES = ("system", "user", "assistant")
#: A message of each role, to see whether LiteLLM changes any.
PLAIN_MESSAGES = [{"role": role, "content": "text"} for role in PLAIN_ROLES]
#: Parameters that differ from request to request, and that no provider gets in another form.
OPAQUE_PARAMETERS = frozenset({"user", "safety_identifier", "prompt_cache_key", "cache_salt"})
#: Translated parameters that are kept, for each deployment.
MAX_TEMPLATES = 256
#: Models of OpenAI and Azure whose plain chats LiteLLM does not change, with these parameters.
#: A test compares the tables with LiteLLM.
UNCHANGED_MODELS = re.compile(r"gpt-(3\.5-turbo|4|4-turbo|4\.1|4o)(-mini|-nano)?(-[\d-]+)?")
_UNCHANGED = {
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "user"),
}
UNCHANGED_PARAMETERS = {"openai": {*_UNCHANGED, "safety_identifier"}, "azure": _UNCHANGED}
#: LiteLLM's parameters of accounts and deployments that change no body.
NEUTRAL_PARAMS = frozenset(
    {
        *("api_key", "api_base", "api_version", "organization", "timeout", "stream_timeout"),
        *("weight", "rpm", "tpm", "order", "tags", "max_parallel_requests"),
    }
)
#: How LiteLLM begins its errors, and what it says of a picture that it would have to download.
LITELLM_PREFIX = re.compile(r"^(litellm\.\w+: )+")
NOT_FETCHED = re.compile(r"fetch image from URL|Image URL download is disabled")
#: Length of an error's text.
MAX_REASON = 200


class Untranslatable(ValueError):
    """The provider does not support the request. The message repeats nothing of its messages."""


class Translator:
    """Translates the requests to one deployment. Any thread may call it.

    Args:
        privacy: Adds what providers may learn of tenants and end users.
    """

    def __init__(self, deployment: Deployment, provider: Provider, privacy: Privacy) -> None:
        self._deployment, self._provider, self._privacy = deployment, provider, privacy
        #: Translated plain chats without their messages, by their parameters; None where LiteLLM
        #: changes the messages too.
        self._templates: dict[str, TranslatedRequest | None] = {}
        #: Names in the bodies of plain chats that LiteLLM does not change.
        self._unchanged = _unchanged(deployment, provider)

    def translate(self, request: Request, body: Json | None = None) -> TranslatedRequest:
        """Translate a request. Raises Untranslatable, by the name of what is not supported.

        Args:
            body: The request's body, if the caller has it.
        """
        if why := request.unsupported().get("batch"):
            raise Untranslatable(why)
        fields = self._privacy.fields(request, self._provider.litellm_provider)
        own = request.body() if body is None else body
        body = {**own, **fields, "model": self._deployment.upstream}
        if not isinstance(request, CompletionRequest):
            return TranslatedRequest(request.endpoint, body)
        messages = body.pop("messages")
        if not all(map(_is_plain, messages)):
            return self._prepare(request)
        if body.keys() <= self._unchanged:
            return TranslatedRequest(request.endpoint, {**body, "messages": messages})
        opaque = {name: body[name] for name in OPAQUE_PARAMETERS & body.keys()}
        template = self._template(request, body, opaque)
        if template is None:
            return self._prepare(request)
        return template._replace(body={**template.body, **opaque, "messages": messages})

    def _template(self, request: Request, body: Json, opaque: Json) -> TranslatedRequest | None:
        """The translation of plain chats with these parameters, for any opaque values."""
        key = json.dumps({**body, **dict.fromkeys(opaque)}, sort_keys=True)
        if key not in self._templates:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            translated = self._prepare(request.model_copy(update={"messages": PLAIN_MESSAGES}))
            expected = {**opaque, "messages": PLAIN_MESSAGES}
            is_template = expected.items() <= translated.body.items()
            self._templates[key] = translated if is_template else None
        return self._templates.get(key)

    def _prepare(self, request: Request) -> TranslatedRequest:
        try:
            call = self._preparer.prepare(request)
        except Exception as error:
            raise Untranslatable(self._reason(error, request)) from None
        if call.endpoint != request.endpoint_at(self._deployment.kind):
            raise Untranslatable(f"model: {self._deployment.upstream} answers {call.endpoint} only")
        return TranslatedRequest(*call, model=self._deployment.upstream)

    @cached_property
    def _preparer(self) -> CallPreparer:
        import workers.realtime.litellm_import  # noqa: F401, PLC0415
        from workers.realtime.prepared_call import CallPreparer  # noqa: PLC0415

        return CallPreparer(self._deployment, self._provider, self._privacy)

    def _reason(self, error: Exception, request: Request) -> str:
        """The reason of a refusal, by its type alone where the text may repeat the messages."""
        try:
            self._preparer.prepare(request.model_copy(update={"messages": PLAIN_MESSAGES}))
        except Exception as error_without_messages:
            return _first_sentence(error_without_messages)
        if NOT_FETCHED.search(str(error)):
            return "messages: the provider does not fetch this address; send the data itself"
        name = type(error).__name__
        if name == "UnsupportedParamsError":  # of types of parts
            return _first_sentence(error)
        return f"messages: not supported by {self._provider.litellm_provider} ({name})"


def _unchanged(deployment: Deployment, provider: Provider) -> set[str]:
    params = {*provider.litellm_params.values(), *deployment.litellm_params.values()}
    names = UNCHANGED_PARAMETERS.get(provider.litellm_provider)
    is_plain_model = deployment.kind == "chat" and UNCHANGED_MODELS.fullmatch(deployment.upstream)
    is_as_litellm_knows = params <= NEUTRAL_PARAMS and not deployment.model_info
    return {"model", *names} if names and is_plain_model and is_as_litellm_knows else set()


def _is_plain(message: Json) -> bool:
    return (
        message.keys() == {"role", "content"}
        and message["role"] in PLAIN_ROLES
        and isinstance(message["content"], str)
    )


def _first_sentence(error: Exception) -> str:
    """LiteLLM's text without its advice on its own settings."""
    text = str(error).partition("\n")[0].partition(" To drop ")[0]
    return LITELLM_PREFIX.sub("", text)[:MAX_REASON]

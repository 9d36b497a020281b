"""Translates requests to the form of the provider that serves them, as the realtime lane does.

LiteLLM does the work and is imported on first use: only fleets that need it pay its 190 MB.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cached_property, lru_cache
from typing import Any

from config.provider import Deployment, Provider
from primarch_fleet.requests import CompletionRequest, Request
from primarch_fleet.requests.defaults import is_default
from scheduler.model.jsonl import TranslatedRequest
from scheduler.translation.omissions import Omissions
from tasks.privacy import Privacy

Json = dict[str, Any]

CHAT = CompletionRequest.endpoint
#: Providers that get OpenAI's body: what LiteLLM does not know of goes into it as it is.
OPENAI_BODIES = frozenset({"openai", "azure", "groq", "hosted_vllm"})
#: Roles of messages that are plain when their content is text and they have no other field.
PLAIN_ROLES = ("system", "user", "assistant")
#: A message of each role, to see whether LiteLLM changes any.
PLAIN_MESSAGES = [{"role": role, "content": "text"} for role in PLAIN_ROLES]
#: Translated parameters that are kept, for each deployment.
MAX_TEMPLATES = 256
#: Models of OpenAI and Azure whose plain chats LiteLLM does not change, with these parameters.
#: A test compares both tables with LiteLLM.
UNCHANGED_PROVIDERS = frozenset({"openai", "azure"})
UNCHANGED_MODELS = re.compile(r"gpt-(3\.5-turbo|4|4-turbo|4\.1|4o)(-mini|-nano)?(-[\d-]+)?")
UNCHANGED_PARAMETERS = frozenset(
    {
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"),
    }
)
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
    """Translates the requests to one deployment."""

    def __init__(
        self, deployment: Deployment, provider: Provider, privacy: Privacy | None = None
    ) -> None:
        """Without `privacy`, the provider learns nothing of tenants and end users."""
        self._deployment = deployment
        self._provider = provider
        self._privacy = privacy
        self._has_openai_body = provider.litellm_provider in OPENAI_BODIES
        self._template = lru_cache(MAX_TEMPLATES)(self._make_template)
        self._omissions = Omissions(self._call)
        #: Whether LiteLLM changes no plain chat with UNCHANGED_PARAMETERS.
        self._leaves_plain_chats = (
            provider.litellm_provider in UNCHANGED_PROVIDERS
            and UNCHANGED_MODELS.fullmatch(deployment.upstream) is not None
            and {*provider.litellm_params.values(), *deployment.litellm_params.values()}
            <= NEUTRAL_PARAMS
            and not deployment.model_info
        )

    def translate(self, request: Request) -> TranslatedRequest:
        """Translate a request. Raises Untranslatable, by the name of what is not supported."""
        if why := request.unsupported().get("batch"):
            raise Untranslatable(why)
        body = {**request.openai_body(), "model": self._deployment.upstream}
        extra, added = request.extra_body or {}, self._added(request)
        if not isinstance(request, CompletionRequest):
            return TranslatedRequest(request.endpoint, {**body, **extra, **added})
        if not self._has_openai_body:  # LiteLLM translates what it knows of it, too
            if "metadata" in body:
                raise Untranslatable(
                    f"provider_metadata: not supported by {self._provider.litellm_provider}"
                )
            body, extra = {**body, **extra}, {}
        translated = self._translate_chat(body)
        return translated._replace(body={**translated.body, **extra, **added})

    def _added(self, request: Request) -> Json:
        """What the provider may learn of tenant and end user, in the provider's own fields."""
        kind = self._provider.litellm_provider
        fields = self._privacy.fields(request, kind) if self._privacy else {}
        if kind == "anthropic" and "user" in fields:
            return {"metadata": {"user_id": fields["user"]}}
        return fields

    def _translate_chat(self, body: Json) -> TranslatedRequest:
        messages = body.pop("messages")
        if not all(map(_is_plain, messages)):
            return self._translate({**body, "messages": messages})
        if self._leaves_plain_chats and body.keys() <= UNCHANGED_PARAMETERS | {"model"}:
            return TranslatedRequest(CHAT, {**body, "messages": messages})
        template = self._template(json.dumps(body, sort_keys=True))
        if template is None:
            return self._translate({**body, "messages": messages})
        return template._replace(body={**template.body, "messages": messages})

    def _make_template(self, parameters: str) -> TranslatedRequest | None:
        """The translation of plain chats with some parameters, without messages.

        None when LiteLLM changes the messages too.
        """
        translated = self._translate({**json.loads(parameters), "messages": PLAIN_MESSAGES})
        if translated.body.get("messages") != PLAIN_MESSAGES:
            return None
        return translated

    def _translate(self, body: Json) -> TranslatedRequest:
        try:
            translated = self._call_leniently(body)
        except Exception as error:
            raise Untranslatable(self._reason(error, body)) from None
        if translated.endpoint != CompletionRequest.endpoint_at(self._deployment.kind):
            raise Untranslatable(
                f"model: {self._deployment.upstream} answers {translated.endpoint} only"
            )
        omitted = self._omissions.find(body, translated.body)
        added = {name: body[name] for name in omitted.parameters if self._has_openai_body}
        missing = [
            *(name for name in omitted.parameters if name not in added),
            *(f"messages: parts of type {kind!r}" for kind in omitted.parts),
        ]
        if missing:
            raise Untranslatable(
                f"{', '.join(missing)}: not supported by {self._provider.litellm_provider}"
            )
        return translated._replace(body={**translated.body, **added})

    def _call_leniently(self, body: Json) -> TranslatedRequest:
        """Prepare the call, without parameters that have their defaults if LiteLLM refuses some."""
        try:
            return self._call(body)
        except Exception:
            needed = {name: value for name, value in body.items() if not is_default(name, value)}
            if len(needed) == len(body):
                raise
            return self._call(needed)

    def _call(self, body: Json) -> TranslatedRequest:
        """Prepare LiteLLM's call, which may change what it is given."""
        from workers.realtime.prepared_call import prepare_call  # noqa: PLC0415 - LiteLLM

        return TranslatedRequest(*prepare_call(self._entry, copy.deepcopy(body)))

    @cached_property
    def _entry(self) -> Json:
        from workers.realtime.router import deployment_entry  # noqa: PLC0415 - LiteLLM

        return deployment_entry(self._deployment, self._provider)

    def _reason(self, error: Exception, body: Json) -> str:
        """What is wrong. An error about the messages may repeat them: it is named by its type."""
        try:
            self._call({**body, "messages": PLAIN_MESSAGES})
        except Exception as error_without_messages:
            return _first_sentence(error_without_messages)
        if NOT_FETCHED.search(str(error)):
            return "messages: the provider does not fetch this address; send the data itself"
        name = type(error).__name__
        return f"messages: not supported by {self._provider.litellm_provider} ({name})"


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

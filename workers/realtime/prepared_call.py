"""The HTTP call that LiteLLM would make for a chat, without the call.

LiteLLM prepares it as for the realtime lane: the batch lane sends the same body.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import litellm
from litellm.litellm_core_utils.litellm_logging import Logging

from config.provider import Deployment, Provider
from primarch_fleet.requests import Request
from tasks.privacy import Privacy
from workers.realtime.provider_call import ProviderCalls
from workers.realtime.router import deployment_entry

Json = dict[str, Any]

#: The OpenAI library's own options, which LiteLLM passes among the fields of the body.
LIBRARY_OPTIONS = frozenset({"extra_body", "extra_headers", "extra_query", "timeout"})
#: In place of the key: nothing is sent.
NO_KEY = "none"


class PreparedCall(NamedTuple):
    """A call as the provider would get it."""

    #: "/v1/responses" for a model that LiteLLM serves through OpenAI's Responses API.
    endpoint: str
    body: Json
    #: Anthropic's beta features that the body needs.
    betas: frozenset[str]


class CallPreparer:
    """Prepares the calls to one deployment.

    LiteLLM downloads some pictures for that, unless MAX_IMAGE_URL_DOWNLOAD_SIZE_MB is 0 in the
    environment.

    Args:
        privacy: Adds what providers may learn of tenants and end users.
    """

    def __init__(self, deployment: Deployment, provider: Provider, privacy: Privacy) -> None:
        litellm.suppress_debug_info = True
        entry = deployment_entry(deployment, provider)
        self._params: Json = {
            **entry["litellm_params"],
            "api_key": NO_KEY,
            "model_info": entry["model_info"],
            "metadata": {"model_group": entry["model_name"]},
        }
        self._calls = ProviderCalls(privacy, ())

    def prepare(self, request: Request) -> PreparedCall:
        """Prepare the call of a chat.

        Raises:
            Exception: Whatever LiteLLM raises for a request that it cannot translate; an
                `UnsupportedParamsError` names the parameters. The text may repeat the request.
        """
        arguments = self._calls.fit_blocking(request, self._params)
        try:
            litellm.completion(**arguments, litellm_logging_obj=_recorder(arguments))
        except _CallPrepared as prepared:
            return _prepared_call(prepared.details)
        raise RuntimeError("LiteLLM made no call")


class _CallPrepared(BaseException):
    """Carries a prepared call out of LiteLLM, past its handlers of errors."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        super().__init__()
        self.details = details


class _CallRecorder(Logging):
    """LiteLLM's log of one call, which ends the call before it is made."""

    # LiteLLM's signature: it calls by position and by name.
    def pre_call(
        self,
        input: Any,  # noqa: A002
        api_key: Any,
        model: Any = None,
        additional_args: Any = None,
    ) -> None:
        raise _CallPrepared(additional_args)


def _recorder(arguments: Json) -> _CallRecorder:
    return _CallRecorder(
        model=arguments["model"],
        messages=arguments["messages"],
        stream=False,
        call_type="completion",
        start_time=datetime.now(),  # noqa: DTZ005 - as LiteLLM does
        litellm_call_id="",
        function_id="",
    )


def _prepared_call(details: Mapping[str, Any]) -> PreparedCall:
    fields: Json = details["complete_input_dict"]
    body = {name: value for name, value in fields.items() if name not in LIBRARY_OPTIONS}
    body.update(fields.get("extra_body") or {})
    path = str(details.get("api_base") or "").partition("?")[0]
    headers = details.get("headers") or {}
    betas = str(headers.get("anthropic-beta") or "").split(",")
    return PreparedCall(
        endpoint="/v1/responses" if path.endswith("/responses") else "/v1/chat/completions",
        body=body,
        betas=frozenset(beta.strip() for beta in betas if beta.strip()),
    )

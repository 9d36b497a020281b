"""Moderations: whether texts and pictures violate a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from primarch_fleet.contract import Lane
from primarch_fleet.requests.base import JsonMapping, Request


class ModerationRequest(Request):
    """Moderation of one or more inputs, with the parameters of OpenAI's API."""

    verb, endpoint = "moderate", "/v1/moderations"
    router_method, kinds = "amoderation", ("moderation",)

    #: A text, several texts, or the parts of one input.
    input: Annotated[str | Sequence[str] | Sequence[JsonMapping], Field(min_length=1, repr=False)]

    def unsupported(self) -> dict[Lane, str]:
        """Return the lanes that do not support a field of the request, each with the reason."""
        lanes = super().unsupported()
        if self.extra_body:
            lanes["realtime"] = "extra_body: moderations have no other parameters"
        return lanes

    @classmethod
    def normalized(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Return a moderation's body with OpenAI's names of categories, `self-harm/intent`.

        LiteLLM adds each under the name of the openai SDK too, `self_harm_intent`.
        """
        results = [{key: _own(value) for key, value in one.items()} for one in body["results"]]
        return {**body, "results": results}

    def output_token_limit(self) -> int:
        """Return 0: moderations have no output tokens."""
        return 0


def _own(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    copies = {name.replace("-", "_").replace("/", "_") for name in value if not name.isidentifier()}
    return {name: part for name, part in value.items() if name not in copies}

"""Embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from primarch_fleet.prompt_size import PromptSize, measure, with_pictures
from primarch_fleet.requests.base import Count, Request


class EmbeddingRequest(Request):
    """Embeddings of one or more inputs, with the parameters of OpenAI's API."""

    verb, endpoint = "embed", "/v1/embeddings"
    router_method, kinds = "aembedding", ("embedding",)

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=2048)]
    ) = Field(repr=False)
    dimensions: Count | None = None
    encoding_format: str | None = None
    user: str | None = None

    @classmethod
    def normalized(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Return a list of embeddings with every field that OpenAI's type requires.

        Counts of tokens that the server left out are 0.
        """
        sent = body.get("usage") or {}
        usage = {"prompt_tokens": 0} | {
            name: count for name, count in sent.items() if count is not None
        }
        body["usage"] = {"total_tokens": usage["prompt_tokens"]} | usage
        data = [
            {"object": "embedding", "index": index} | item
            for index, item in enumerate(body.get("data") or ())
        ]
        return {"object": "list", "model": ""} | body | {"data": data}

    def prompt_size(self, body: Mapping[str, Any] | None = None) -> PromptSize:
        """Return what the inputs consist of. The data URL of a picture is a picture."""
        body = self.body() if body is None else body
        return measure({**body, "input": with_pictures(self.input)})

    @property
    def input_count(self) -> int:
        """The texts and token lists to embed."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return 1
        return len(self.input)

    def output_token_limit(self) -> int:
        """Return 0: embeddings have no output tokens."""
        return 0

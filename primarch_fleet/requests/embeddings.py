"""Embeddings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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

    @property
    def input_count(self) -> int:
        """The texts and token lists to embed."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return 1
        return len(self.input)

    def output_token_limit(self) -> int:
        """Return 0: embeddings have no output tokens."""
        return 0

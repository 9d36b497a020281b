"""OpenAI's Files and Batch APIs: https://platform.openai.com/docs/guides/batch.

What other servers do otherwise and any may do is met here, what only one does in its own class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import httpx
import openai
from openai import AsyncOpenAI
from openai.types import Batch

from config.provider import Provider
from primarch_fleet.contract import CompletionRequest, EmbeddingRequest
from scheduler.providers.base import (
    INTENT,
    BatchFingerprint,
    BatchPage,
    Capabilities,
    ProviderBatch,
)
from scheduler.providers.errors import BatchFault, ProviderCallFailed, error_from_status

#: Seconds for one call; an upload of 200 MB has to fit.
TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=300.0, write=300.0)
#: Seconds.
DAY = 86_400
PAGE_SIZE = 100
#: Input files that a search for one just uploaded looks at: the list holds up to 10,000 a page, and
#: 1,000 uploads a minute are allowed.
#: https://github.com/openai/openai-openapi/blob/master/openapi.yaml
MAX_LISTED_FILES = 1000
#: Anthropic's and Microsoft's samples' spelling, as ours.
STATUS_SPELLINGS = {"canceled": "cancelled", "canceling": "cancelling"}

CHAT, EMBEDDINGS = CompletionRequest.endpoint, EmbeddingRequest.endpoint
Endpoint = Literal["/v1/chat/completions", "/v1/embeddings"]


class OpenAIBatches:
    """`BatchProvider` over the OpenAI SDK."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        endpoints=frozenset({CHAT, EMBEDDINGS}),
        max_requests=50_000,
        windows=frozenset({"24h"}),
        max_bytes=200_000_000,
        input_life=7 * DAY,  # longer than any batch
    )

    def __init__(self, client: AsyncOpenAI) -> None:
        # The SDK repeats calls by default: for a create that would be a second batch to pay.
        self._client = client.with_options(max_retries=0, timeout=TIMEOUT)
        _ = self._client.files, self._client.batches  # imported here, not while the loop runs

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """The account of the configuration. Raises ConfigError when its key is not set."""
        return cls(AsyncOpenAI(api_key=provider.key(), base_url=provider.base_url()))

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file, read from disk as it is sent."""
        life = self.capabilities.input_life
        with failures(), path.open("rb") as file:
            uploaded = await self._client.files.create(
                file=(name, file, "application/jsonl"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": life} if life else openai.omit,
            )
        return uploaded.id

    async def find_input_file(self, name: str, size: int) -> str | None:
        """The newest file of this name and size among the newest FILES."""
        with failures():
            page = await self._client.files.list(
                purpose="batch", order="desc", limit=MAX_LISTED_FILES
            )
        found = (file.id for file in page.data if (file.filename, file.bytes) == (name, size))
        return next(found, None)

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Order a batch."""
        with failures():
            batch = await self._client.batches.create(
                input_file_id=file_id,
                endpoint=cast(Endpoint, endpoint),
                completion_window=cast(Literal["24h"], window),
                metadata={INTENT: intent} if self.capabilities.metadata else openai.omit,
            )
            return provider_batch(batch)

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """A batch as it is now."""
        with failures():
            return provider_batch(await self._client.batches.retrieve(batch_id))

    async def list(self, after: str | None) -> BatchPage:
        """PAGE batches, newest first as far as is known."""
        with failures():
            page = await self._client.batches.list(limit=PAGE_SIZE, after=after or openai.omit)
            # `has_more` may be missing: then only an empty page is the last.
            return BatchPage(
                [provider_batch(batch) for batch in page.data], page.has_more is not False
            )

    async def cancel(self, batch_id: str) -> None:
        """Start cancelling a batch."""
        with failures():
            await self._client.batches.cancel(batch_id)

    async def download(self, file_id: str, path: Path) -> None:
        """Write a result file and compare its length, where the server tells it: a connection may
        end early unnoticed.
        """
        part = path.with_name(path.name + ".part")
        with failures():
            size = (await self._client.files.retrieve(file_id)).bytes
            content = self._client.files.with_streaming_response.content(file_id)
            async with content as response:
                await response.stream_to_file(part)
        if size is not None and part.stat().st_size != size:
            raise ProviderCallFailed(f"{file_id}: {part.stat().st_size} of {size} bytes came")
        os.replace(part, path)

    async def matches(self, remote: ProviderBatch, sought: BatchFingerprint) -> bool:
        """By our intent, where batches carry it, and by the input file."""
        by_intent = remote.metadata.get(INTENT) == sought.intent
        return by_intent or remote.input_file_id == sought.file_id

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def provider_batch(batch: Batch) -> ProviderBatch:
    """OpenAI's batch as ours; what compatible servers leave out or write as "" is none."""
    faults = (batch.errors.data if batch.errors else None) or []
    return ProviderBatch(
        id=batch.id,
        status=STATUS_SPELLINGS.get(batch.status, batch.status),
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        input_file_id=batch.input_file_id or "",
        output_file_id=batch.output_file_id or "",
        error_file_id=batch.error_file_id or "",
        faults=tuple(BatchFault(one.code or "", one.message or "", one.line) for one in faults),
        metadata=dict(batch.metadata or {}),
    )


@contextmanager
def failures() -> Iterator[None]:
    """Turn the SDK's errors into the seam's."""
    try:
        yield
    except openai.APIStatusError as error:
        raise error_from_status(
            error.status_code, _message(error), error.code or "", error.response.headers
        ) from error
    except (openai.OpenAIError, httpx.HTTPError) as error:
        raise ProviderCallFailed(f"{type(error).__name__}: {error}") from error


def _message(error: openai.APIStatusError) -> str:
    body: Any = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message

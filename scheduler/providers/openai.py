"""OpenAI's Files and Batch APIs: https://platform.openai.com/docs/guides/batch.

What compatible servers may do differently is handled here; what only one of them does is in its own
class.
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
from openai.types import Batch, BatchError, FileObject
from openai.types.batch import Errors

from config.provider import Provider
from primarch_fleet.requests import CompletionRequest
from scheduler.model.jsonl import TranslatedRequest
from scheduler.providers.base import (
    INTENT_KEY,
    BatchFingerprint,
    BatchPage,
    Capabilities,
    ProviderBatch,
)
from scheduler.providers.credentials import client_options
from scheduler.providers.errors import BatchFault, ProviderCallFailed, error_from_status

#: Seconds for one call; an upload of 200 MB has to fit.
TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=300.0, write=300.0)
DAY_SECONDS = 86_400
PAGE_SIZE = 100
#: Newest files among which a search for an input file looks: a page may have 10,000, and 1,000
#: uploads a minute are allowed.
#: https://github.com/openai/openai-openapi/blob/master/openapi.yaml
MAX_LISTED_FILES = 1000
#: Statuses as Anthropic and Microsoft's samples spell them -> as OpenAI does.
STATUS_SPELLINGS = {"canceled": "cancelled", "canceling": "cancelling"}

CHAT = CompletionRequest.endpoint


class OpenAIBatches:
    """`BatchProvider` on the OpenAI SDK."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        max_requests=50_000,
        windows=frozenset({"24h"}),
        max_bytes=200_000_000,
        input_ttl_seconds=7 * DAY_SECONDS,  # longer than any batch
    )

    def __init__(self, client: AsyncOpenAI) -> None:
        # The SDK retries by default: a repeated create would be a second batch to pay.
        self._client = client.with_options(max_retries=0, timeout=TIMEOUT)
        # The SDK imports these on first use: do that now, not while the event loop runs.
        _ = self._client.files, self._client.batches

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account. Raises ConfigError when its key is not set."""
        options = client_options(provider)
        return cls(AsyncOpenAI(api_key=provider.key(), base_url=provider.base_url(), **options))

    @staticmethod
    def line(custom_id: str, request: TranslatedRequest) -> dict[str, Any]:
        """Return the line of a request in an input file."""
        url, body = request.endpoint, request.body
        return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}

    async def upload(self, path: Path, name: str) -> str:
        """Upload an input file, read from disk while it is sent."""
        ttl = self.capabilities.input_ttl_seconds
        with provider_errors(), path.open("rb") as file:
            uploaded = await self._client.files.create(
                file=(name, file, "application/jsonl"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": ttl} if ttl else openai.omit,
            )
        return _id_of(uploaded)

    async def find_input_file(self, name: str, size: int) -> str | None:
        """Return the newest file of a name and size among the newest MAX_LISTED_FILES."""
        with provider_errors():
            page = await self._client.files.list(
                purpose="batch", order="desc", limit=MAX_LISTED_FILES
            )
        for file in page.data:
            if (file.filename, file.bytes) == (name, size):
                return file.id
        return None

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Create a batch."""
        with provider_errors():
            batch = await self._client.batches.create(
                input_file_id=file_id,
                endpoint=cast(Any, endpoint),
                completion_window=cast(Literal["24h"], window),
                metadata={INTENT_KEY: intent} if self.capabilities.metadata else openai.omit,
            )
        _id_of(batch)
        return provider_batch(batch)

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """Return a batch as it is now."""
        with provider_errors():
            return provider_batch(await self._client.batches.retrieve(batch_id))

    async def list(self, after: str | None) -> BatchPage:
        """Return PAGE_SIZE batches; OpenAI lists the newest first, other servers may not."""
        with provider_errors():
            page = await self._client.batches.list(limit=PAGE_SIZE, after=after or openai.omit)
            # A server may leave out `has_more`: then only an empty page is the last one.
            return BatchPage(
                [provider_batch(batch) for batch in page.data], page.has_more is not False
            )

    async def cancel(self, batch_id: str) -> None:
        """Start to cancel a batch."""
        with provider_errors():
            await self._client.batches.cancel(batch_id)

    async def download(self, file_id: str, path: Path) -> None:
        """Write a result file, and check its length where the server tells it.

        A connection may end early without an error.
        """
        part = path.with_name(path.name + ".part")
        with provider_errors():
            size = (await self._client.files.retrieve(file_id)).bytes
            content = self._client.files.with_streaming_response.content(file_id)
            async with content as response:
                await response.stream_to_file(part)
        received = part.stat().st_size
        # Some servers do not know it.
        if isinstance(size, int) and size > 0 and received != size:
            raise ProviderCallFailed(f"{file_id}: received {received} of {size} bytes")
        os.replace(part, path)

    async def matches(self, batch: ProviderBatch, fingerprint: BatchFingerprint) -> bool:
        """Compare the intent, where batches carry it, and the input file."""
        return batch.intent == fingerprint.intent or batch.input_file_id == fingerprint.file_id

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def provider_batch(batch: Batch) -> ProviderBatch:
    """Convert OpenAI's batch. Compatible servers leave out fields, or write them as ""."""
    return ProviderBatch(
        id=batch.id,
        status=STATUS_SPELLINGS.get(batch.status, batch.status),
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        input_file_id=batch.input_file_id or "",
        output_file_id=batch.output_file_id or "",
        error_file_id=batch.error_file_id or "",
        faults=tuple(_faults(batch.errors)),
        metadata=dict(batch.metadata or {}),
    )


def _faults(errors: object) -> Iterator[BatchFault]:
    """The errors of a batch: OpenAI's object of a list, a list, an error, or a text."""
    data = errors.data if isinstance(errors, Errors) else errors
    for error in data if isinstance(data, list) else [data]:
        values = dict(error) if isinstance(error, BatchError) else error
        if isinstance(values, dict):
            code, message = (str(values.get(name) or "") for name in ("code", "message"))
            line = values.get("line")
            yield BatchFault(code, message, line if isinstance(line, int) else None)
        elif values:
            yield BatchFault("", str(values), None)


def _id_of(made: FileObject | Batch) -> str:
    """The id of what a call has made. Raises ProviderCallFailed: the answer has none."""
    identity: object = made.id
    if not isinstance(identity, str) or not identity:
        raise ProviderCallFailed("the answer has no id")
    return identity


@contextmanager
def provider_errors() -> Iterator[None]:
    """Convert the SDK's errors to ProviderRefused and ProviderCallFailed."""
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

"""Anthropic's Message Batches: https://docs.anthropic.com/en/docs/build-with-claude/batch-processing.

The differences from OpenAI, and how they fit the interface:

- The create call carries the requests. An "uploaded" input file stays on this machine as an order
  file, and is streamed into the call. Another machine does not find it and writes its own.
- A batch carries nothing of the fleet. When a create call got no answer, a running batch shows only
  its creation time and number of requests; the custom_ids in its results show whose it is after it
  has ended. Until then the job waits, because it must not create a second batch.
- Requests are validated one by one during execution: a batch never fails as a whole.
- The results are one file; each line says whether it is an error.

The SDK is imported when an account is opened: only fleets that have one pay its 60 MB of memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

from config.provider import Provider
from scheduler.model import jsonl
from scheduler.model.jsonl import TranslatedRequest
from scheduler.providers import anthropic_results
from scheduler.providers.base import (
    CLOCK_SKEW_SECONDS,
    BatchFingerprint,
    BatchPage,
    Capabilities,
    ProviderBatch,
)
from scheduler.providers.credentials import client_options
from scheduler.providers.errors import (
    ProviderCallFailed,
    ProviderRefused,
    error_from_status,
)
from scheduler.providers.openai import CHAT
from scheduler.providers.order_file import OrderFiles, open_order, pieces

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

BATCHES_PATH = "/v1/messages/batches"
#: Of a line of an input file: the beta features that its request needs.
BETAS = "betas"
#: The version that LiteLLM translates for. The SDK's newer one has no temperature:
#: https://platform.claude.com/docs/en/api/versioning.
VERSION = {"anthropic-version": "2023-06-01"}
PAGE_SIZE = 100
#: Bytes reserved for the headers at the start of an order file.
HEADERS_BYTES = 4096
#: The window of every batch.
WINDOW = "24h"


class AnthropicBatches(OrderFiles):
    """`BatchProvider` on the Anthropic SDK."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        max_requests=100_000,
        windows=frozenset({WINDOW}),
        max_bytes=256_000_000,
        metadata=False,
    )

    def __init__(self, client: AsyncAnthropic) -> None:
        from anthropic import Timeout  # noqa: PLC0415

        # The SDK retries by default: a repeated create would be a second batch to pay.
        timeout = Timeout(60.0, connect=10.0, read=300.0, write=300.0)
        self._client = client.with_options(max_retries=0, timeout=timeout, default_headers=VERSION)

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account. Raises ConfigError when its key is not set."""
        from anthropic import AsyncAnthropic  # noqa: PLC0415

        # LiteLLM also accepts an address with the path of the API.
        base_url = re.sub(r"/v1(/messages)?/?$", "", provider.base_url() or "") or None
        headers = client_options(provider).get("default_headers")
        client = AsyncAnthropic(api_key=provider.key(), base_url=base_url, default_headers=headers)
        return cls(client)

    @staticmethod
    def line(custom_id: str, request: TranslatedRequest) -> dict[str, Any]:
        """Return a request of the create call, with the beta features that it needs."""
        return {"custom_id": custom_id, "params": request.body, BETAS: sorted(request.betas)}

    @staticmethod
    def write_order(lines: Iterable[bytes], order: BinaryIO) -> None:
        """Write an order file: a line of headers, then the request body."""
        betas, separator = set[str](), b""
        order.write(b" " * HEADERS_BYTES + b'\n{"requests":[')
        for text in lines:
            request = json.loads(text)
            betas.update(request.pop(BETAS))
            order.write(separator + jsonl.encode(request))
            separator = b","
        order.write(b"]}")
        order.seek(0)
        headers = {"anthropic-beta": ",".join(sorted(betas))} if betas else {}
        order.write(json.dumps(headers).encode())

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Create a batch, streamed from the order file.

        Raises InputFileNotLocal when another machine has written the order file.
        """
        from anthropic.types.messages import MessageBatch  # noqa: PLC0415

        if endpoint != CHAT or window != WINDOW:
            raise ProviderRefused(f"Anthropic has no batches of {endpoint} within {window}", 400)
        with await open_order(file_id) as file, provider_errors():
            headers = json.loads(file.readline())
            size_bytes = os.fstat(file.fileno()).st_size - file.tell()
            # `batches.create` would need all requests in memory.
            batch = await self._client.post(
                BATCHES_PATH,
                cast_to=MessageBatch,
                content=pieces(file),
                options={"headers": {**headers, "content-length": str(size_bytes)}},
            )
            return provider_batch(batch)

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """Return a batch as it is now."""
        with provider_errors():
            return provider_batch(await self._client.messages.batches.retrieve(batch_id))

    async def list(self, after: str | None) -> BatchPage:
        """Return PAGE_SIZE batches, newest first."""
        from anthropic import omit  # noqa: PLC0415

        with provider_errors():
            page = await self._client.messages.batches.list(limit=PAGE_SIZE, after_id=after or omit)
            return BatchPage(
                [provider_batch(batch) for batch in page.data], page.has_more is not False
            )

    async def cancel(self, batch_id: str) -> None:
        """Start to cancel a batch."""
        with provider_errors():
            await self._client.messages.batches.cancel(batch_id)

    async def download(self, file_id: str, path: Path) -> None:
        """Write a batch's results in the format of OpenAI's files; the batch id is the file id."""
        part = path.with_name(path.name + ".part")
        with provider_errors():
            batch = await self._client.messages.batches.retrieve(file_id)
        with part.open("wb") as file:
            async for line in self._result_lines(file_id):
                file.write(line)
        ended_at = batch.ended_at or batch.created_at
        await asyncio.to_thread(_translate_results, part, path, int(ended_at.timestamp()))

    async def matches(self, batch: ProviderBatch, fingerprint: BatchFingerprint) -> bool | None:
        """Compare creation time and number of requests, and the custom_ids of an ended batch.

        Returns None for a running batch that may be the one. One custom_id of the job is enough:
        its other requests may have been cancelled since.
        """
        too_early = batch.created_at < fingerprint.since - CLOCK_SKEW_SECONDS
        if too_early or batch.requests != fingerprint.requests:
            return False
        if batch.id in fingerprint.other_batches:
            return False
        if not batch.files:
            return None
        async with aclosing(self._result_lines(batch.id)) as lines:
            async for line in lines:
                custom_id = _custom_id(line)
                if await fingerprint.has(custom_id):
                    return True
                if jsonl.request_of(custom_id) is None:
                    return False
        return False

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _result_lines(self, batch_id: str) -> AsyncGenerator[bytes]:
        """Yield the lines of a batch's results, each with its newline if it has one."""
        batches = self._client.messages.batches
        with provider_errors():
            async with batches.with_streaming_response.results(batch_id) as response:
                rest = b""
                async for piece in response.iter_bytes():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        yield line + b"\n"
                if rest:
                    yield rest


def provider_batch(batch: MessageBatch) -> ProviderBatch:
    """Convert Anthropic's batch. Its request counts tell how it ended."""
    counts = batch.request_counts
    return ProviderBatch(
        id=batch.id,
        status=_status(batch),
        created_at=batch.created_at.timestamp(),
        expires_at=batch.expires_at.timestamp(),
        output_file_id=batch.id if batch.results_url else "",
        requests=sum(
            (counts.processing, counts.succeeded, counts.errored, counts.canceled, counts.expired)
        ),
    )


def _status(batch: MessageBatch) -> str:
    if batch.processing_status == "canceling":
        return "cancelling"
    if batch.processing_status != "ended":
        return batch.processing_status
    if batch.request_counts.expired:
        return "expired"
    return "cancelled" if batch.request_counts.canceled else "completed"


def _translate_results(source: Path, target: Path, created: int) -> None:
    """Rewrite Anthropic's results as a file of OpenAI's; a line that is no result stays as it is.

    Raises ProviderCallFailed when the last line is truncated.
    """
    translated = target.with_name(target.name + ".whole")
    with source.open("rb") as file, translated.open("wb") as output:
        for text in file:
            try:
                line = jsonl.encode(anthropic_results.result_line(json.loads(text), created))
            except (ValueError, KeyError, TypeError):
                if not text.endswith(b"\n"):
                    raise ProviderCallFailed("the results end within a line") from None
                line = text
            output.write(line)
    source.unlink()
    translated.replace(target)


def _custom_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        raise ProviderCallFailed("the results are unreadable") from None


@contextmanager
def provider_errors() -> Iterator[None]:
    """Convert the SDK's errors to ProviderRefused and ProviderCallFailed."""
    import anthropic  # noqa: PLC0415
    import httpx2  # noqa: PLC0415

    try:
        yield
    except anthropic.APIStatusError as error:
        message = error.api_message or error.message
        code, headers = error.type or "", error.response.headers
        raise error_from_status(error.status_code, message, code, headers) from error
    except (anthropic.AnthropicError, httpx2.HTTPError) as error:
        raise ProviderCallFailed(f"{type(error).__name__}: {error}") from error

"""Anthropic's Message Batches: https://docs.anthropic.com/en/docs/build-with-claude/batch-processing.

What it does otherwise than OpenAI, and how that fits the seam:

- Requests travel in the call itself: an "uploaded" file stays on this machine, translated, and is
  streamed into the call. Another machine does not find it, and writes its own.
- A batch carries nothing of ours. Of one that may have been made without an answer, only the time
  and the number of its requests can be seen until it has ended, and then the custom_ids in its
  results: until then a job waits, because it must not be ordered twice.
- Requests are validated one by one while they are executed: a batch as a whole never fails.
- The results are one file; which of them are errors says each line.

The SDK is imported when an account is opened: 60 MB that only who has one pays.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Self

from config.provider import Provider
from scheduler.model import jsonl
from scheduler.providers import anthropic_messages
from scheduler.providers.base import (
    CLOCK_SKEW_SECONDS,
    BatchFingerprint,
    BatchPage,
    Capabilities,
    ProviderBatch,
)
from scheduler.providers.errors import (
    BatchFault,
    InputFileNotLocal,
    ProviderCallFailed,
    ProviderRefused,
    error_from_status,
)
from scheduler.providers.openai import CHAT

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages import MessageBatch

BATCHES = "/v1/messages/batches"
#: What LiteLLM translates for. The SDK's own, newer one has no temperature any more:
#: https://platform.claude.com/docs/en/api/versioning.
VERSION = {"anthropic-version": "2023-06-01"}
#: Batches in a page of the list, and bytes of an order in memory at once.
PAGE, PIECE = 100, 1 << 20
#: Bytes kept free for the headers at the beginning of an order.
HEAD = 4096
#: The window that all batches have.
WINDOW = "24h"
#: https://docs.anthropic.com/en/api/errors: a lack of credit may come as a 400 without a code.
NO_CREDIT = "credit balance is too low"


class AnthropicBatches:
    """`BatchProvider` over the Anthropic SDK."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        endpoints=frozenset({CHAT}),
        max_requests=100_000,
        windows=frozenset({"24h"}),
        # Half of Anthropic's 256 MB: short texts grow in translation, but not to the double.
        max_bytes=128_000_000,
        metadata=False,
    )

    def __init__(self, client: AsyncAnthropic) -> None:
        from anthropic import Timeout  # noqa: PLC0415

        # The SDK repeats calls by default: for a create that would be a second batch to pay.
        timeout = Timeout(60.0, connect=10.0, read=300.0, write=300.0)
        self._client = client.with_options(max_retries=0, timeout=timeout, default_headers=VERSION)

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """The account of the configuration. Raises ConfigError when its key is not set."""
        from anthropic import AsyncAnthropic  # noqa: PLC0415

        # LiteLLM takes an address with the path of the API too.
        base_url = re.sub(r"/v1(/messages)?/?$", "", provider.base_url() or "") or None
        return cls(AsyncAnthropic(api_key=provider.key(), base_url=base_url))

    async def upload(self, path: Path, name: str) -> str:
        """Translate an input file into an order beside it; its path, on this machine, is the id.

        Raises Refused, with the lines, when some cannot be translated; no order is left then.
        """
        order = path.with_suffix(".order")
        faults = await asyncio.to_thread(_translate, path, order)
        if faults:
            raise ProviderRefused(
                "Anthropic cannot be asked for all of it", 400, faults=tuple(faults)
            )
        return str(order)

    async def find_input_file(self, name: str, size: int) -> None:
        """None: what is "uploaded" stays here, and is as soon written again as found."""

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Order a batch, streamed from disk; one translated on another machine is not found."""
        from anthropic.types.messages import MessageBatch  # noqa: PLC0415

        if endpoint != CHAT or window != WINDOW:
            raise ProviderRefused(f"Anthropic has no batches of {endpoint} within {window}", 400)
        try:
            file = await asyncio.to_thread(open, file_id, "rb")
        except FileNotFoundError:
            raise InputFileNotLocal(file_id) from None
        with failures(), file:
            headers = json.loads(file.readline())
            size = os.fstat(file.fileno()).st_size - file.tell()
            # `batches.create` would need all requests in memory.
            batch = await self._client.post(
                BATCHES,
                cast_to=MessageBatch,
                content=_pieces(file),
                options={"headers": {**headers, "content-length": str(size)}},
            )
            return remote(batch)

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """A batch as it is now."""
        with failures():
            return remote(await self._client.messages.batches.retrieve(batch_id))

    async def list(self, after: str | None) -> BatchPage:
        """PAGE batches, newest first."""
        from anthropic import omit  # noqa: PLC0415

        with failures():
            page = await self._client.messages.batches.list(limit=PAGE, after_id=after or omit)
            return BatchPage([remote(batch) for batch in page.data], page.has_more is not False)

    async def cancel(self, batch_id: str) -> None:
        """Start cancelling a batch."""
        with failures():
            await self._client.messages.batches.cancel(batch_id)

    async def download(self, file_id: str, path: Path) -> None:
        """Write the results of a batch, whose id is the file's, in the lines of OpenAI's files."""
        part = path.with_name(path.name + ".part")
        with failures():
            batch = await self._client.messages.batches.retrieve(file_id)
        with part.open("wb") as file:
            async for line in self._results(file_id):
                file.write(line)
        ended_at = batch.ended_at or batch.created_at
        await asyncio.to_thread(_translate_results, part, path, int(ended_at.timestamp()))

    async def matches(self, remote: ProviderBatch, sought: BatchFingerprint) -> bool | None:
        """By its time and number of requests while it runs: not, or nobody knows.

        By its custom_ids once it has ended. A request of the job may have been cancelled since: one
        that is left is enough.
        """
        early = remote.created_at < sought.since - CLOCK_SKEW_SECONDS
        if early or remote.requests != sought.requests or remote.id in sought.others:
            return False
        if not remote.files:
            return None
        async with aclosing(self._results(remote.id)) as results:
            async for line in results:
                custom_id = _custom_id(line)
                if await sought.has(custom_id):
                    return True
                if jsonl.request_of(custom_id) is None:
                    return False
        return False

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _results(self, batch_id: str) -> AsyncGenerator[bytes]:
        """The lines of a batch's results, each with its newline as far as it has one."""
        batches = self._client.messages.batches
        with failures():
            async with batches.with_streaming_response.results(batch_id) as response:
                rest = b""
                async for piece in response.iter_bytes():
                    *whole, rest = (rest + piece).split(b"\n")
                    for line in whole:
                        yield line + b"\n"
                if rest:
                    yield rest


def remote(batch: MessageBatch) -> ProviderBatch:
    """Anthropic's batch as ours. It does not say how a batch ended: the counts do."""
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
    if batch.processing_status != "ended":
        return {"canceling": "cancelling"}.get(batch.processing_status, batch.processing_status)
    if batch.request_counts.expired:
        return "expired"
    return "cancelled" if batch.request_counts.canceled else "completed"


def _translate(path: Path, order: Path) -> list[BatchFault]:
    """Write an order, complete or not at all: a line of headers, then the body of the call."""
    part, betas = order.with_suffix(".order.part"), set[str]()
    faults: list[BatchFault] = []
    with path.open("rb") as file, part.open("wb") as body:
        body.write(b" " * HEAD + b'\n{"requests":[')
        for number, text in enumerate(file, 1):
            line = json.loads(text)
            try:
                params = anthropic_messages.params(line["body"])
            except anthropic_messages.Untranslatable as error:
                faults.append(BatchFault("untranslatable", str(error), number))
                continue
            betas |= params.betas
            request = {"custom_id": line["custom_id"], "params": params.params}
            body.write(b"," * (number > 1) + _json(request))
        body.write(b"]}")
        body.seek(0)
        body.write(_json({"anthropic-beta": ",".join(sorted(betas))} if betas else {}))
    if faults:
        part.unlink()
    else:
        part.replace(order)
    return faults


def _translate_results(part: Path, path: Path, created: int) -> None:
    """Anthropic's results as a file of OpenAI's; a line that is none stays as it is.

    Raises Failure when the last one is cut short.
    """
    whole = path.with_name(path.name + ".whole")
    with part.open("rb") as file, whole.open("wb") as ours:
        for text in file:
            try:
                line = _json(anthropic_messages.answer(json.loads(text), created))
            except (ValueError, KeyError, TypeError):
                if not text.endswith(b"\n"):
                    raise ProviderCallFailed("the results end within a line") from None
                line = text.rstrip(b"\n")
            ours.write(line + b"\n")
    part.unlink()
    whole.replace(path)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _custom_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        raise ProviderCallFailed("the results cannot be read") from None


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece


@contextmanager
def failures() -> Iterator[None]:
    """Turn the SDK's errors into the seam's."""
    import anthropic  # noqa: PLC0415
    import httpx2  # noqa: PLC0415

    try:
        yield
    except anthropic.APIStatusError as error:
        message = error.api_message or error.message
        code = "billing_error" if NO_CREDIT in message else error.type or ""
        raise error_from_status(error.status_code, message, code, error.response.headers) from error
    except (anthropic.AnthropicError, httpx2.HTTPError) as error:
        raise ProviderCallFailed(f"{type(error).__name__}: {error}") from error

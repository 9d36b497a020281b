"""Gemini's batches (Google AI Studio): https://ai.google.dev/gemini-api/docs/batch-api.

The differences from OpenAI, and how they fit the interface:

- The create call carries the requests, 20 MB at most. An "uploaded" input file stays on this
  machine and is streamed into the call. Another machine does not find it and writes its own.
- The intent of a job is the batch's display name.
- A batch is an operation; its results are in it when it has ended, in one list.
- A batch that has expired, after 48 hours, has no results.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import httpx

from config.provider import Provider
from scheduler.model import jsonl
from scheduler.model.jsonl import TranslatedRequest
from scheduler.providers import gemini_results
from scheduler.providers.base import (
    INTENT_KEY,
    BatchFingerprint,
    BatchPage,
    Capabilities,
    ProviderBatch,
)
from scheduler.providers.errors import (
    BatchFault,
    ProviderCallFailed,
    error_from_status,
)
from scheduler.providers.order_file import OrderFiles, open_order, pieces

#: With the version of the API, as LiteLLM has it.
BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=300.0, write=300.0)
PAGE_SIZE = 100
#: The last word of a state, `BATCH_STATE_...` or `JOB_STATE_...` -> OpenAI's status.
STATUSES = {
    "PENDING": "in_progress",
    "RUNNING": "in_progress",
    "SUCCEEDED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}

Json = dict[str, Any]


class GeminiBatches(OrderFiles):
    """`BatchProvider` over Gemini's REST API."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        max_requests=50_000,
        windows=frozenset({"24h"}),
        max_bytes=20_000_000,
    )

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        #: Tokens of the next pages, by the last batch of a page.
        self._page_tokens: dict[str, str] = {}

    @classmethod
    def from_config(cls, provider: Provider) -> Self:
        """Return the configured account. Raises ConfigError when its key is not set."""
        base_url = (provider.base_url() or BASE_URL).rstrip("/")
        headers = {"x-goog-api-key": provider.key()}
        return cls(httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT))

    @staticmethod
    def line(custom_id: str, request: TranslatedRequest) -> Json:
        """Return a request of the create call, and the model that the call names."""
        inlined = {"request": request.body, "metadata": {"key": custom_id}}
        return {"model": request.model, "inlined": inlined}

    @staticmethod
    def write_order(lines: Iterable[bytes], order: BinaryIO) -> None:
        """Write an order file: a line with the model, then the requests, separated by commas."""
        separator = b""
        for text in lines:
            line = json.loads(text)
            if not separator:
                order.write(jsonl.encode({"model": line["model"]}))
            order.write(separator + jsonl.encode(line["inlined"]))
            separator = b","

    async def create(self, file_id: str, endpoint: str, window: str, intent: str) -> ProviderBatch:
        """Create a batch, streamed from the order file.

        Raises InputFileNotLocal when another machine has written the order file.
        """
        with await open_order(file_id) as file:
            model = json.loads(file.readline())["model"]
            path = f"/models/{model}:batchGenerateContent"
            return provider_batch(await self._call("POST", path, content=_body(intent, file)))

    async def retrieve(self, batch_id: str) -> ProviderBatch:
        """Return a batch as it is now."""
        return provider_batch(await self._call("GET", f"/{batch_id}"))

    async def list(self, after: str | None) -> BatchPage:
        """Return PAGE_SIZE batches."""
        params = {"pageSize": str(PAGE_SIZE)}
        if after is not None:
            params["pageToken"] = self._page_tokens.get(after, "")
        page = await self._call("GET", "/batches", params=params)
        batches = [provider_batch(operation) for operation in page.get("operations") or ()]
        token = page.get("nextPageToken")
        if token and batches:
            self._page_tokens = {batches[-1].id: token}
        return BatchPage(batches, bool(token))

    async def cancel(self, batch_id: str) -> None:
        """Start to cancel a batch."""
        await self._call("POST", f"/{batch_id}:cancel")

    async def download(self, file_id: str, path: Path) -> None:
        """Write a batch's results in the format of OpenAI's files; the batch id is the file id."""
        operation = await self._call("GET", f"/{file_id}")
        await asyncio.to_thread(_write_results, operation, path)

    async def matches(self, batch: ProviderBatch, fingerprint: BatchFingerprint) -> bool:
        """Compare the display name, which is the intent."""
        return batch.intent == fingerprint.intent

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(self, method: str, path: str, **options: Any) -> Json:
        with provider_errors():
            response = await self._client.request(method, path, **options)
            response.raise_for_status()
            answer: Json = response.json()
            return answer


def provider_batch(operation: Json) -> ProviderBatch:
    """Convert Gemini's operation."""
    about = operation.get("metadata") or {}
    state = str(about.get("state") or "")
    status = STATUSES.get(state.rpartition("_")[2], state)
    error = operation.get("error")
    name = str(operation["name"])
    return ProviderBatch(
        id=name,
        status=status,
        created_at=datetime.fromisoformat(about["createTime"]).timestamp(),
        output_file_id=name if gemini_results.inlined(operation) else "",
        faults=(_fault(error),) if error else (),
        metadata={INTENT_KEY: str(about.get("displayName") or "")},
    )


def _fault(error: Json) -> BatchFault:
    code = gemini_results.CODES.get(error.get("code") or 0, ("", 500))[0]
    return BatchFault(code, str(error.get("message") or ""), None)


def _write_results(operation: Json, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    created = int(provider_batch(operation).created_at)
    with part.open("wb") as file:
        for inlined in gemini_results.inlined(operation):
            file.write(jsonl.encode(gemini_results.result_line(inlined, created)))
    part.replace(path)


async def _body(intent: str, file: BinaryIO) -> AsyncIterator[bytes]:
    yield b'{"batch":{"display_name":"' + intent.encode() + b'",'
    yield b'"input_config":{"requests":{"requests":['
    async for piece in pieces(file):
        yield piece
    yield b"]}}}}"


@contextmanager
def provider_errors() -> Iterator[None]:
    """Convert HTTP errors to ProviderRefused and ProviderCallFailed."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        response = error.response
        message, code = _google_error(response)
        raise error_from_status(response.status_code, message, code, response.headers) from error
    except (httpx.HTTPError, ValueError) as error:
        raise ProviderCallFailed(f"{type(error).__name__}: {error}") from error


def _google_error(response: httpx.Response) -> tuple[str, str]:
    """The message and the status of Google's error."""
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("status") or "").lower()
    except (ValueError, KeyError, TypeError):
        return response.text[:200], ""

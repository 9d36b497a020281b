"""Which requests are in a batch at the provider, by the custom_ids of its lines."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from scheduler.model import jsonl
from scheduler.providers.base import BatchProvider, ProviderBatch
from scheduler.providers.errors import ProviderRefused


class Line(NamedTuple):
    """Where a request is in a batch, and in which of its attempts."""

    number: int
    attempt: int


#: By request.
Lines = Mapping[str, Line]


class BatchLines:
    """Reads the lines of batches, and keeps them until `keep`.

    Args:
        folder: For a file while it is read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, Lines] = {}

    def keep(self, batch_ids: Collection[str]) -> None:
        """Forget what was read of all batches but these."""
        self._lines = {name: lines for name, lines in self._lines.items() if name in batch_ids}

    def held(self) -> bool:
        """Return whether the lines of some batch are kept."""
        return bool(self._lines)

    def known(self, batch_id: str) -> Lines | None:
        """Return the lines of a batch that were read before; None for another batch."""
        return self._lines.get(batch_id)

    async def read(self, provider: BatchProvider, batch: ProviderBatch) -> Lines | None:
        """Return a batch's lines: those of its input file, or of its results without that file.

        None while there is neither. Where only results tell, the numbers of the lines are not those
        of the input file.

        Raises:
            ProviderCallFailed: A file could not be read.
        """
        if batch.id in self._lines:
            return self._lines[batch.id]
        for file_ids in ([batch.input_file_id] if batch.input_file_id else [], batch.files):
            try:
                custom_ids = await self._custom_ids(provider, batch, file_ids)
            except ProviderRefused:  # the file has expired
                continue
            if file_ids:
                self._lines[batch.id] = _lines(custom_ids)
                return self._lines[batch.id]
        return None

    async def _custom_ids(
        self, provider: BatchProvider, batch: ProviderBatch, file_ids: list[str]
    ) -> list[str]:
        name = hashlib.blake2b(batch.id.encode(), digest_size=16).hexdigest()
        path, custom_ids = self._folder / f"{name}.lines", list[str]()
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        try:
            for file_id in file_ids:
                await provider.download(file_id, path)
                custom_ids += await asyncio.to_thread(_read, path)
        finally:
            path.unlink(missing_ok=True)
        return custom_ids


def _lines(custom_ids: list[str]) -> Lines:
    return {
        request: Line(number, jsonl.attempt_of(custom_id))
        for number, custom_id in enumerate(custom_ids, 1)
        if (request := jsonl.request_of(custom_id)) is not None
    }


def _read(path: Path) -> list[str]:
    """Read the custom_ids of a file; a line without an id counts too."""
    with path.open("rb") as file:
        return [_custom_id(line) for line in file if line.strip()]


def _custom_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["custom_id"])
    except (ValueError, KeyError, TypeError):
        return ""

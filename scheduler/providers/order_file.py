"""Input files of a provider whose create call carries the requests.

The "uploaded" file stays on this machine, as an order file: the body of the create call, almost.
Another machine does not find it and writes its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO

from scheduler.providers.errors import InputFileNotLocal

#: Bytes of an order file in memory while it is sent.
PIECE_BYTES = 1 << 20


class OrderFiles:
    """The input files of a `BatchProvider` that has no files of its own."""

    @staticmethod
    def write_order(lines: Iterable[bytes], order: BinaryIO) -> None:
        """Write the order file of an input file's lines."""
        raise NotImplementedError

    async def upload(self, path: Path, name: str) -> str:
        """Write an input file as an order file next to it; its local path is the id.

        The order file is complete, or it does not exist.
        """
        order = path.with_suffix(".order")
        await asyncio.to_thread(self._write, path, order)
        return str(order)

    async def find_input_file(self, name: str, size: int) -> None:
        """Return None: the order file is local, and writing it again costs as little."""

    def _write(self, path: Path, order: Path) -> None:
        part = order.with_suffix(".order.part")
        with path.open("rb") as lines, part.open("wb") as file:
            self.write_order(lines, file)
        part.replace(order)


async def open_order(file_id: str) -> BinaryIO:
    """Open an order file by its id.

    Raises:
        InputFileNotLocal: Another machine has written the order file.
    """
    try:
        return await asyncio.to_thread(open, file_id, "rb")
    except FileNotFoundError:
        raise InputFileNotLocal(file_id) from None


async def pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield the rest of an order file, PIECE_BYTES at a time."""
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece

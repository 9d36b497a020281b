"""Keeps the last lines that child processes write to standard error, to explain their failure."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from types import TracebackType
from typing import Self

#: Lines that are kept: more than the last traceback of a process that dies.
MAX_LINES = 400
#: The last line of a Python traceback: `torch.OutOfMemoryError: CUDA out of memory.`
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .+")


class StderrTail:
    """Routes standard error through a pipe within the block, and keeps its last lines.

    Everything is passed on to the original standard error. Processes started within the block keep
    writing to the pipe after it; the pipe is read until the last of them ends.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)

    def __enter__(self) -> Self:
        self._stderr = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.dup2(self._stderr, 2)

    def last_error(self, timeout_seconds: float = 2.0) -> str:
        """Return the last error line of a traceback, or "" if there was none.

        Args:
            timeout_seconds: How long to wait for the processes to end, so that all is read.
        """
        self._thread.join(timeout_seconds)
        return next((line for line in reversed(self._lines) if _ERROR.match(line)), "")

    def _read(self, reader: int) -> None:
        with open(reader, "rb") as pipe:
            for line in pipe:
                os.write(self._stderr, line)
                self._lines.append(line.decode(errors="replace").rstrip())
        os.close(self._stderr)

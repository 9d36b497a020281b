"""Listening to what child processes write to standard error, so that their failure has a reason."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from types import TracebackType
from typing import Self

#: Lines that are kept: more than the last traceback of a process that dies.
LINES = 400
#: How Python ends a traceback: `torch.OutOfMemoryError: CUDA out of memory.`
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .+")


class StderrTail:
    """Within the block, standard error goes through a pipe, on which its last lines are kept.

    All is passed on to where it went before. Processes started within keep writing to the pipe
    when the block has ended; it is read until the last of them is gone.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)

    def __enter__(self) -> Self:
        self._before = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        self._pump = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._pump.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.dup2(self._before, 2)

    def cause(self, patience: float = 2.0) -> str:
        """The last error that was written, or "" if there was none.

        Args:
            patience: Seconds that the processes have to end, so that all they said is read.
        """
        self._pump.join(patience)
        return next((line for line in reversed(self._lines) if _ERROR.match(line)), "")

    def _read(self, reader: int) -> None:
        with open(reader, "rb") as pipe:
            for line in pipe:
                os.write(self._before, line)
                self._lines.append(line.decode(errors="replace").rstrip())
        os.close(self._before)

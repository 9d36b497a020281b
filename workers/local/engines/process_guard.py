"""Processes that do not outlive the one that started them, however that one ends (Linux)."""

from __future__ import annotations

import os
import subprocess
import uuid
from types import TracebackType
from typing import Self

#: In the environment of what is on the leash.
NAME = "FLEET_LEASH"
#: Waits for its standard input to close, then kills whoever has the name and its value.
_SCRIPT = f"""
read -r _
for process in /proc/[0-9]*; do
    if [ "${{process#/proc/}}" != $$ ] && grep -qsz "^{NAME}=$1$" "$process/environ"; then
        kill -9 "${{process#/proc/}}" 2>/dev/null
    fi
done
"""


class KillOnParentExit:
    """Processes started within the block, and theirs, are killed at `close()` or this one's end.

    vLLM's would live on without their parent and keep the GPU. A block that raises closes it.
    """

    def __enter__(self) -> Self:
        token = uuid.uuid4().hex
        command = ["/bin/sh", "-c", _SCRIPT, "leash", token]
        self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
        os.environ[NAME] = token
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del os.environ[NAME]
        if kind:
            self.close()

    def close(self) -> None:
        """Kill what is left."""
        self._watcher.communicate()

"""Kills child processes when their parent ends, however it ends (Linux)."""

from __future__ import annotations

import os
import subprocess
import uuid
from types import TracebackType
from typing import Self

#: Environment variable that marks the guarded processes; its value is unique to each guard.
MARKER = "FLEET_PROCESS_GUARD"
#: Keeps setproctitle from overwriting a process's environment, in which the marker is found.
KEEP_ENVIRONMENT = "SPT_NOENV"
#: Waits until its standard input closes, then kills every process whose marker has the given value.
_SCRIPT = f"""
read -r _
for process in /proc/[0-9]*; do
    if [ "${{process#/proc/}}" != $$ ] && grep -qsz "^{MARKER}=$1$" "$process/environ"; then
        kill -9 "${{process#/proc/}}" 2>/dev/null
    fi
done
"""


class KillOnParentExit:
    """Processes started within the block, and their children, are killed with this process.

    They are killed at `close()`, when the block raises, or when this process ends in any way.
    vLLM's processes would outlive their parent and keep the GPU.
    """

    def __enter__(self) -> Self:
        token = uuid.uuid4().hex
        command = ["/bin/sh", "-c", _SCRIPT, "process-guard", token]
        self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
        os.environ |= {MARKER: token, KEEP_ENVIRONMENT: "1"}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del os.environ[MARKER], os.environ[KEEP_ENVIRONMENT]
        if kind:
            self.close()

    def close(self) -> None:
        """Kill the guarded processes that are still running."""
        self._watcher.communicate()

"""Prints what a person at the terminal of `make up` needs to see.

This is what the process `ready` prints, and each process that ends unexpectedly. The output of all
other processes is in their log files.

An event listener of supervisord: http://supervisord.org/events.html#event-listeners.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from supervisor import childutils

_WHAT_HAPPENED = {
    "PROCESS_STATE_EXITED": "ended unexpectedly and is started again",
    "PROCESS_STATE_BACKOFF": "ended while it started and is started again",
    "PROCESS_STATE_FATAL": "does not start and is not tried again: restart the fleet",
}
_STOPPING = "SUPERVISOR_STATE_CHANGE_STOPPING"
#: What the listener subscribes to.
EVENTS = ("PROCESS_LOG", *_WHAT_HAPPENED, _STOPPING)
#: How much of the end of a log is read for its last line.
_END_BYTES = 4096


def main() -> None:
    """Handle events until supervisord closes the pipe. The argument is the folder of the logs."""
    log_dir = Path(sys.argv[1])
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        for line in lines(headers["eventname"], payload, log_dir):
            # Standard output carries supervisord's protocol.
            print(line, file=sys.stderr, flush=True)
        childutils.listener.ok(sys.stdout)


def lines(event: str, payload: str, log_dir: Path) -> Iterator[str]:
    """Return what the terminal shows of an event."""
    if event.startswith("PROCESS_LOG"):
        yield from filter(str.strip, childutils.eventdata(payload + "\n")[1].splitlines())
    elif event == _STOPPING:
        yield "Stopping the fleet: running requests may end first."
    else:
        process = childutils.get_headers(payload)
        name = process["processname"]
        if process.get("expected") != "1" and name != "ready":  # which has said why
            log = log_dir / f"{name}.log"
            yield f"{name} {_WHAT_HAPPENED[event]}. Its log: {log}"
            yield from (f"  {line}" for line in _last_line(log))


def _last_line(log: Path) -> list[str]:
    """The last line of a log, where a process that cannot start says why."""
    try:
        end = log.read_bytes()[-_END_BYTES:].decode(errors="replace")
    except OSError:
        return []
    return [line for line in end.splitlines() if line.strip()][-1:]


if __name__ == "__main__":
    main()

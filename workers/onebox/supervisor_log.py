"""Prints what the fleet's processes say, each line behind its process's name.

An event listener of supervisord: http://supervisord.org/events.html#event-listeners.
"""

from __future__ import annotations

import sys

from supervisor import childutils

WIDTH = 10


def main() -> None:
    """Serve events until supervisord closes the pipe."""
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        if headers["eventname"].startswith("PROCESS_LOG"):
            who, text = childutils.eventdata(payload + "\n")
            show(who["processname"], text)
        childutils.listener.ok(sys.stdout)


def show(name: str, text: str) -> None:
    """Standard output belongs to supervisord's protocol: write to the other one."""
    for line in filter(str.strip, text.splitlines()):
        print(f"{name:<{WIDTH}} | {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

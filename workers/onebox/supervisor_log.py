"""Prints the output of the fleet's processes, each line after the name of its process.

An event listener of supervisord: http://supervisord.org/events.html#event-listeners.
"""

from __future__ import annotations

import sys

from supervisor import childutils

NAME_WIDTH = 10


def main() -> None:
    """Handle events until supervisord closes the pipe."""
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        if headers["eventname"].startswith("PROCESS_LOG"):
            event, text = childutils.eventdata(payload + "\n")
            show(event["processname"], text)
        childutils.listener.ok(sys.stdout)


def show(name: str, text: str) -> None:
    """Print to standard error: standard output carries supervisord's protocol."""
    for line in filter(str.strip, text.splitlines()):
        print(f"{name:<{NAME_WIDTH}} | {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""What commands print, a report for a person on stderr and JSON on stdout, and how they exit."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import click
import redis

from primarch_fleet.errors import FleetError

#: Between two lines of progress where stderr is no terminal.
LINE_INTERVAL_SECONDS = 10.0


def report(text: str, exit_status: int) -> int:
    """Print a line to stderr and return the exit status."""
    click.echo(text, err=True)
    return exit_status


def exit_status_of(run: Callable[[], int]) -> int:
    """Run a command; return its exit status, or that of what has stopped it, which is reported."""
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except FleetError as error:
        return report(str(error), 1)
    except redis.RedisError as error:
        return report(f"the broker did not answer: {error}", 1)
    except BrokenPipeError:  # the reader of stdout has read enough
        return 1
    except OSError as error:  # a full disk, a file without permission
        named = f"{error.filename}: " if error.filename else ""
        return report(f"{named}{error.strerror or error}", 1)


def print_json(value: dict[str, Any]) -> None:
    """Print an object on one line of stdout."""
    click.echo(json.dumps(value))


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Progress on stderr: a bar on a terminal, or else a line now and then.

    Args:
        total: What the progress counts up to.
        clock: Monotonic seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._done = 0
        self._line_at = clock() + LINE_INTERVAL_SECONDS
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = click.progressbar(
                length=total,
                file=sys.stderr,
                show_pos=True,
                item_show_func=lambda text: text,
            )
            self._bar.render_progress()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def show(self, done: int, text: str) -> None:
        """Show how much is done, and a text beside it."""
        added, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(added, text)
            self._bar.render_progress()
        elif self._clock() >= self._line_at:
            self._line_at = self._clock() + LINE_INTERVAL_SECONDS
            report(f"{done} of {self._total}: {text}", 0)

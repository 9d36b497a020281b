"""The requests of a life: every kind of thing that may hang on the completion of a task."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

from celery import Celery, Task, chord

from primarch_fleet import CompletionRequest
from tests.support.batch_fixture import chat

#: In the text of the request that the provider refuses.
REFUSED = "refused"
#: All of them by the ids of their tasks.
NAMES = ("plain", REFUSED, "linked", "chained", "part-1", "part-2")
#: Tasks that are sent when they are completed, each once, with the requests that it hears of.
FOLLOWERS = {
    "test.linked": ["linked"],
    "test.chained": ["chained"],
    "test.joined": ["part-1", "part-2"],
    "test.refused": [REFUSED],
}


class Fate(NamedTuple):
    """What becomes of requests: outcomes by their tasks' ids, each a text or an error's name; the
    followers with the requests that they hear of; how many requests may be on the bill.
    """

    outcomes: dict[str, str]
    followers: list[tuple[str, list[str]]]
    billed: Collection[int]


def answered(names: Collection[str]) -> Fate:
    """What becomes of requests that nobody cancels."""
    outcomes = {name: "ProviderError" if name == REFUSED else name for name in names}
    followers = [(task, of) for task, of in FOLLOWERS.items() if set(of) <= set(names)]
    return Fate(outcomes, followers, [len([name for name in names if name != REFUSED])])


def _heard(_: Any) -> None:
    """A follower; none is run. It has one argument: Celery would call an errback with more."""


def register(app: Celery) -> None:
    """Make the followers known to an app."""
    for name in FOLLOWERS:
        app.task(name=name)(_heard)


def send(app: Celery, complete: Task[Any, Any], names: list[str], now: float) -> None:
    """Enqueue the requests of these names: "both" has a link and an errback, "late-N" a deadline N
    seconds from now.
    """

    def ask(name: str, request: CompletionRequest | None = None, **options: Any) -> Any:
        return complete.s((request or chat(name)).to_wire()).set(task_id=name, **options)

    def late(name: str) -> Any:
        deadline = datetime.fromtimestamp(now + float(name.removeprefix("late-")), UTC)
        return ask(name, chat(name, deadline=deadline))

    def follow(name: str) -> Any:
        return app.tasks[f"test.{name}"].s()

    kinds: dict[str, Callable[[], Any]] = {
        "plain": lambda: ask("plain"),
        REFUSED: lambda: ask(REFUSED, link_error=follow("refused")),
        "linked": lambda: ask("linked", link=follow("linked")),
        "both": lambda: ask("both", link=follow("linked"), link_error=follow("refused")),
        "chained": lambda: ask("chained") | follow("chained"),
        "part-1": lambda: chord([ask("part-1"), ask("part-2")], follow("joined")),
    }
    for name in names:
        if name.startswith("late-"):
            late(name).apply_async()
        elif name in kinds:
            kinds[name]().apply_async()

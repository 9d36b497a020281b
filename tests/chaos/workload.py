"""The requests of a chaos test: tasks with every kind of follow-up that Celery has."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

from celery import Celery, Task, chord

from primarch_fleet import CompletionRequest
from tests.support.batch_fixture import chat

#: The text of the request that the provider refuses, and its task id.
REFUSED = "refused"
#: The task ids of all requests.
NAMES = ("plain", REFUSED, "linked", "chained", "part-1", "part-2")
#: Tasks that must be sent once when requests complete, with the requests whose outcomes they get.
FOLLOW_UPS = {
    "test.linked": ["linked"],
    "test.chained": ["chained"],
    "test.joined": ["part-1", "part-2"],
    "test.refused": [REFUSED],
}


class Expected(NamedTuple):
    """What must be true in the end."""

    #: By task id: the text of the answer, or the name of the error.
    outcomes: dict[str, str]
    #: The follow-up tasks, with the requests whose outcomes they get.
    follow_ups: list[tuple[str, list[str]]]
    #: How many requests the provider may have billed.
    billed: Collection[int]


def all_answered(names: Collection[str]) -> Expected:
    """Expect outcomes of requests that are not cancelled."""
    outcomes = {name: "ProviderError" if name == REFUSED else name for name in names}
    follow_ups = [(task, of) for task, of in FOLLOW_UPS.items() if set(of) <= set(names)]
    return Expected(outcomes, follow_ups, [len([name for name in names if name != REFUSED])])


def _follow_up(_: Any) -> None:
    """The body of the follow-ups, which are never run.

    It has one argument: Celery itself would call an errback with more.
    """


def register(app: Celery) -> None:
    """Register the follow-up tasks."""
    for name in FOLLOW_UPS:
        app.task(name=name)(_follow_up)


def send(app: Celery, complete: Task[Any, Any], names: list[str], now: float) -> None:
    """Enqueue requests by name.

    "both" has a link and an errback, "late-N" a deadline N seconds from now.
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

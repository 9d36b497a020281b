"""Calls of a client, sync or asyncio, real or a fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.producer import request

#: Each method.
CALLS: dict[str, Callable[[Any], Any]] = {
    "submit": lambda fleet: fleet.submit(request()),
    "submit_many": lambda fleet: fleet.submit_many([request()]),
    "result": lambda fleet: fleet.result("id"),
    "results": lambda fleet: fleet.results(["id"]),
    "stream": lambda fleet: fleet.stream("id"),
    "stream of a request": lambda fleet: fleet.stream(request()),
    "status": lambda fleet: fleet.status("id"),
    "progress": lambda fleet: fleet.progress(["id"]),
    "cancel": lambda fleet: fleet.cancel("id"),
    "cancel_many": lambda fleet: fleet.cancel_many(["id"]),
    "budget": lambda fleet: fleet.budget("t"),
}

BODY: Any = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}

#: Calls with a wrong argument, by the start of the error.
WRONG_CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    (r"request: pass a request such as .*dict: Comp", lambda fleet: fleet.submit(BODY)),
    (r"request: pass a request such as .*not None$", lambda fleet: fleet.submit(None)),
    (r"requests: pass a list .*CompletionRequest", lambda fleet: fleet.submit_many(request())),
    (r"requests: pass a list .*dict", lambda fleet: fleet.submit_many(BODY)),
    (r"requests\[1\]: pass a .*dict", lambda fleet: fleet.submit_many([request(), BODY])),
    (
        r"ticket: pass the ticket .*or its id, not .*CompletionR",
        lambda fleet: fleet.result(request()),
    ),
    (r"ticket: .*coroutine|ticket: .*list", lambda fleet: fleet.result([], timeout=1)),
    (r"ticket: .*not None", lambda fleet: fleet.status(None)),
    (r"ticket: .*type int", lambda fleet: fleet.cancel(5)),
    (r"timeout: pass seconds .*or None.*type str", lambda fleet: fleet.result("id", timeout="30")),
    (r"timeout: pass seconds .*number, not .*str", lambda fleet: fleet.cancel("id", timeout="30")),
    (r"timeout: pass seconds .*type bool", lambda fleet: fleet.result("id", timeout=True)),
    (r"tickets: pass a list .*str", lambda fleet: fleet.progress("id")),
    (r"tickets\[1\]: pass the", lambda fleet: fleet.progress(["id", BODY])),
    (r"request: .*a ticket or its id, not .*dict", lambda fleet: fleet.stream(BODY)),
    (r"timeout: pass seconds", lambda fleet: fleet.stream("id", timeout="30")),
    (r"tenant_id: pass a text", lambda fleet: fleet.budget(None)),
]

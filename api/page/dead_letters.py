"""The pages of dead letters: a list without messages, and one message for those who may see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from starlette.responses import Response

from api.call import Call
from api.errors import ApiError
from api.page.actions import Done, Form
from api.page.filters import query_of, read_filter
from api.page.reading import MAX_ROWS, Rows, read
from api.page.view import render
from primarch_fleet.contract import LANES
from scheduler.admin.dead_letters import (
    UNKNOWN_TASK,
    DeadLetters,
    Letter,
    LetterFilter,
    NoSuchLetter,
    NotReplayable,
)
from scheduler.cli.connection import with_redis

#: Characters of a message that its page shows.
_MAX_MESSAGE = 100_000
_PATH = "/dead-letters"

_Verb = Callable[[DeadLetters, str], Awaitable[Letter]]


async def show(call: Call) -> Response:
    """Show the newest dead letters that match the filter in the address."""
    where = read_filter(LetterFilter, lambda name: call.request.query_params.get(name, ""))
    letters = await read(
        call.services,
        lambda services: with_redis(
            lambda client: DeadLetters(client).list(None, where), services.url
        ),
    )
    return await render(
        call,
        "dead_letters.html",
        where=where,
        query=query_of(where),
        lanes=LANES,
        rows=Rows.of(letters),
        matching=len(letters),
        acted_on_at_once=MAX_ROWS,
    )


async def show_message(call: Call) -> Response:
    """Show a dead letter; its message only if the key may see prompts."""
    letter_id = call.request.path_params["letter"]

    async def find(client: Redis) -> dict[str, object]:
        return await DeadLetters(client).show(letter_id)

    try:
        found = await read(call.services, lambda services: with_redis(find, services.url))
    except NoSuchLetter:
        raise ApiError(404, "not_found", "no such dead letter: replayed or dropped?") from None
    message = found.pop("message")
    text = message if isinstance(message, str) else json.dumps(message, indent=2)
    return await render(
        call,
        "dead_letter.html",
        letter=found,
        text=text[:_MAX_MESSAGE] if call.caller.sees_prompts else None,
        more=max(0, len(text) - _MAX_MESSAGE),
    )


async def retry(call: Call, form: Form) -> Done:
    """Put messages back in their queues, as `fleet retry` does."""
    return await _each(call, form, DeadLetters.replay, _replayed)


async def drop(call: Call, form: Form) -> Done:
    """Remove dead letters, as `fleet dead drop` does."""
    return await _each(call, form, DeadLetters.drop, _dropped)


async def _each(
    call: Call, form: Form, verb: _Verb, sentence: Callable[[list[Letter]], str]
) -> Done:
    """Do the same to the dead letters that are chosen or, with `all`, those that match."""
    where, ids = read_filter(LetterFilter, form.one), form.all("id")

    async def act(client: Redis) -> tuple[list[Letter], list[str]]:
        store, done, problems = DeadLetters(client), [], []
        chosen = ids[:MAX_ROWS]
        if form.one("all"):
            chosen = [letter.id for letter in await store.list(MAX_ROWS, where)]
        for letter_id in chosen:
            try:
                done.append(await verb(store, letter_id))
            except (NoSuchLetter, NotReplayable) as error:
                problems.append(str(error))
        return done, problems

    done, problems = await asyncio.to_thread(with_redis, act, call.services.url)
    if not (done or problems):
        return Done("No dead letter was chosen.", _PATH, query_of(where))
    sentences = [sentence(done), *(f"{problem}." for problem in problems[:3])]
    if len(problems) > 3:
        sentences.append(f"{len(problems) - 3} more failed.")
    return Done(" ".join(sentences), _PATH, query_of(where))


def _replayed(letters: list[Letter]) -> str:
    text = f"{_messages(letters)} back in the queue."
    if unknown := sorted({letter.task for letter in letters if letter.kind == UNKNOWN_TASK}):
        text += f" No worker knew {', '.join(unknown)}: start workers whose code has the task."
    return text


def _dropped(letters: list[Letter]) -> str:
    return f"{_messages(letters)} dropped."


def _messages(letters: list[Letter]) -> str:
    return f"{len(letters)} message{'' if len(letters) == 1 else 's'}"

"""Pausing and resuming queues, and the creation of batches."""

from __future__ import annotations

import asyncio

from api.call import Call
from api.errors import ApiError
from api.page.actions import Done, Form
from scheduler.admin import pausing
from scheduler.cli.connection import with_redis

#: Where an operator comes from, and goes back to.
_PAGES = ("/", "/batches")


async def pause(call: Call, form: Form) -> Done:
    """Pause a queue, or batch creation, as `fleet pause` does."""
    named = await _changed(call, form, pausing.pause)
    return Done(f"Paused: {', '.join(_names(named))}.", _page(form))


async def resume(call: Call, form: Form) -> Done:
    """Resume a queue, or batch creation, as `fleet resume` does."""
    named = await _changed(call, form, pausing.resume)
    accounts = f" Tried again: {', '.join(named.accounts)}." if named.accounts else ""
    return Done(f"Resumed: {', '.join(_names(named))}.{accounts}", _page(form))


async def _changed(call: Call, form: Form, change: pausing.Change) -> pausing.Named:
    names = form.all("name")
    try:
        return await asyncio.to_thread(
            with_redis, lambda client: change(client, names), call.services.url
        )
    except pausing.UnknownQueue as error:
        raise ApiError(404, "not_found", str(error)) from None


def _names(named: pausing.Named) -> list[str]:
    return [*named.queues, *(["batch creation"] if named.batches else [])]


def _page(form: Form) -> str:
    page = form.one("page")
    return page if page in _PAGES else _PAGES[0]

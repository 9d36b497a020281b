"""The calls and pauses of LiteLLM's Router in a task that was cancelled."""

import asyncio
from contextlib import suppress

import pytest

from workers.realtime.router_host import RouterHost


async def swallow_a_cancellation() -> None:
    """Do what LiteLLM does with a cancellation that arrives while it handles an error."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_no_call_begins_after_a_swallowed_cancellation() -> None:
    call = RouterHost().invoke("acompletion")
    await swallow_a_cancellation()
    with pytest.raises(asyncio.CancelledError):
        await call(model="openai/none", messages=[], model_info={"id": "d"})


@pytest.mark.anyio
async def test_no_pause_begins_after_a_swallowed_cancellation() -> None:
    await swallow_a_cancellation()
    with pytest.raises(asyncio.CancelledError):
        await RouterHost().sleep(10)

"""Ends tasks on the event loop: results and acknowledgements of many tasks in one round trip.

Whatever ends while a round trip is under way goes with the next one. A message is acknowledged only
after the result of its task is stored: the tracer waits for that, so the acknowledgement is in a
later group.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import NoScriptError

from primarch_fleet import redis_support
from primarch_fleet.redis_support import ScriptPipeline
from tasks.grouped_calls import GroupedCalls
from workers.runtime.leases.acknowledger import Acknowledger
from workers.runtime.leases.leases import LEASES
from workers.runtime.loop import event_loop, task_greenlets
from workers.runtime.scripts import STORE_RESULT

logger = logging.getLogger(__name__)


@dataclass
class _Result:
    """A result to be stored: the keys and arguments of lua/store_result.lua, and then its reply."""

    keys: Sequence[Any]
    args: Sequence[Any]
    reply: int | None = None


class Completions:
    """The results and acknowledgements of this process's loop. Call it in greenlets of the loop.

    There is one instance per process: `COMPLETIONS`. No method raises because Redis fails.
    """

    def __init__(self) -> None:
        self._client: Any = None  # redis-py types each command for its sync and async clients
        self._after_acks: list[Callable[[], object]] = []
        #: Only this loop makes it known to a server, between two groups: so the server that does
        #: not know it is another one than that of the group before.
        self._script = Acknowledger.new_script()
        self._is_script_known = False

    def store(self, url: str, keys: Sequence[Any], args: Sequence[Any]) -> int | None:
        """Store a result at the Redis of a URL.

        Returns:
            The reply of lua/store_result.lua; None if it failed. Then the caller repeats it.
        """
        if self._client is None:
            self._connect(url)
        result = _Result(keys, args)
        task_greenlets.wait(self._groups.submit(result))
        return result.reply

    def ack(self, tag: str) -> None:
        """Acknowledge a message soon. Does not wait."""
        LEASES.end(tag)
        if self._client is None:  # no task has stored a result yet
            task_greenlets.off_loop(LEASES.flush_acks)
        else:
            self._groups.submit(None)

    def after_acks(self, call: Callable[[], object]) -> None:
        """Call this once the acknowledgements so far are in Redis, or soon if they are already."""
        self._after_acks.append(call)

    def _connect(self, url: str) -> None:
        self._client = redis_support.once_async(url, text=False)
        self._groups = GroupedCalls(self._send)
        event_loop.at_stop(self._close)

    async def _close(self) -> None:
        await self._groups.close()
        client, self._client = self._client, None
        await client.aclose()

    async def _send(self, group: list[_Result | None]) -> None:
        pipeline = ScriptPipeline(self._client)
        results = [result for result in group if result is not None]
        for result in results:
            STORE_RESULT.run(pipeline, result.keys, result.args)
        calls, self._after_acks = self._after_acks, []
        try:
            if not self._is_script_known:
                await self._script.load_into(self._client)
                self._is_script_known = True
            tags = LEASES.add_acks(pipeline.commands, self._script)
            replies = await pipeline.execute()
        except NoScriptError:  # the server is another one: nothing of this group is certain
            self._is_script_known = False
            await asyncio.to_thread(LEASES.check_outcomes)
        except redis.RedisError as error:
            action = {"action": "completions_failed"}
            logger.warning("%d results not stored yet: %s", len(results), error, extra=action)
        else:
            for result, reply in zip(results, replies, strict=False):
                result.reply = reply
            LEASES.acks_sent(tags)
        for call in calls:
            call()


COMPLETIONS = Completions()

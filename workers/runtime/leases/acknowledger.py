"""Acknowledges messages, but none whose outcome Redis has forgotten since it was stored.

A Redis that goes back while a worker ends a task may have the lease and not the outcome: a client
would wait in vain once the message was acknowledged. A server that starts again, or another
one, does not know the scripts of before, so the script of a process tells it at no cost.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Set
from typing import Any

import redis
from redis.exceptions import NoScriptError

from primarch_fleet.cancellation import LEASED_TASKS
from primarch_fleet.redis_support import LuaScript
from workers.runtime.scripts import ACK

logger = logging.getLogger(__name__)


class Acknowledger:
    """Ends leases. For one thread at a time.

    Args:
        lease_keys: The keys of the leases and of their renewals.
    """

    def __init__(self, client: redis.Redis, lease_keys: tuple[str, str]) -> None:
        self._client, self._keys = client, [*lease_keys, LEASED_TASKS]
        self._script = self.new_script()
        self._run_id = ""
        #: Leases of before a change of the server: their outcomes may be forgotten.
        self._unsure: set[str] = set()

    @staticmethod
    def new_script() -> LuaScript:
        """Return a copy of the script that no other caller makes known to a server."""
        return LuaScript(f"{ACK.text}-- {uuid.uuid4().hex}\n", ACK.name)

    def sure(self, tasks: Mapping[str, str]) -> dict[str, str]:
        """Return the tasks, by lease tag, whose outcomes the server has not forgotten."""
        return {tag: task for tag, task in tasks.items() if tag not in self._unsure}

    def command(self, tasks: Mapping[str, str], script: LuaScript, *, check: bool) -> list[Any]:
        """Return the command that ends leases; with `check`, those with a stored outcome only."""
        pairs = [text for pair in tasks.items() for text in pair]
        return [*script.command(self._keys, [int(check), *pairs])]

    def check(self, leases: Set[str]) -> None:
        """Find out whether the server has changed: outcomes of these leases may be forgotten."""
        if self.look():
            self._unsure |= leases

    def send(self, tasks: Mapping[str, str], held: Set[str]) -> list[str]:
        """End the leases of tasks that have ended.

        Args:
            tasks: Their ids, by lease tag.
            held: The tags of the other leases that the process has.

        Returns:
            Leases that stay: the server has forgotten the outcomes of their tasks.

        Raises:
            redis.RedisError: The call may be repeated.
        """
        self._unsure &= {*tasks, *held}
        sure = self.sure(tasks)
        try:
            if sure:
                self._run(sure, check=False)
        except NoScriptError:
            self.check({*tasks, *held})
            return self.send(tasks, held)
        unsure = {tag: task for tag, task in tasks.items() if tag not in sure}
        return [tag.decode() for tag in self._run(unsure, check=True)] if unsure else []

    def look(self) -> bool:
        """Make the script known to the server; return whether it is another than at the last look.

        A user who may not ask which server it is gets False.
        """
        self._script.load_into(self._client)
        try:
            run_id = str(self._client.info("server")["run_id"])
        except redis.ResponseError:
            return False
        changed, self._run_id = self._run_id not in ("", run_id), run_id
        if changed:
            action = {"action": "server_changed_under_leases"}
            logger.warning("Redis started again: outcomes are checked", extra=action)
        return changed

    def _run(self, tasks: Mapping[str, str], *, check: bool) -> list[Any]:
        command = self.command(tasks, self._script, check=check)
        replies: list[Any] = self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        return replies

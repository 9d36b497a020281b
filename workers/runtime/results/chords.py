"""Joins chords: Celery's join, which starts again if Redis goes back meanwhile.

Celery counts a part, claims the chord's body, reads the results, publishes the body and cleans up,
by a command each. Redis that goes back between two of them would forget a part or the body, and
the clean-up would hide it. So a join uses scripts that only its process makes known to a server.
A server that has started again does not know these scripts.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from celery import Celery
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from primarch_fleet.celery_redis import PrimaryBackend
from primarch_fleet.redis_support import LuaScript
from workers.runtime.results.publishing import PUBLISHED, publishing_of_chord
from workers.runtime.scripts import CHORD_EXTEND, CHORD_PUBLISHED, CHORD_RELEASE

Script = Callable[..., Any]

#: Seconds for which it is known what was published of a chord that does not expire itself.
CHORD_TTL_SECONDS = 3 * 86_400


class _Join:
    """What is known of one join.

    Args:
        group: The id of the chord's header.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    #: Whether Redis has started again, and may have lost what the join has written.
    is_undone = False


_current: ContextVar[_Join] = ContextVar("join")


class _CeleryScripts(PrimaryBackend):
    """Reads Celery's scripts of a join."""

    _chord_part_return_script: Any
    _chord_cleanup_script: Any

    def texts(self) -> dict[str, str]:
        return {
            "count": self._chord_part_return_script.script,
            "clean": self._chord_cleanup_script.script,
        }


class ChordJoins(PrimaryBackend):
    """Mixin of a result backend: joins chords, and repeats each command until Redis has answered.

    Celery fails the chord if one of these commands fails.
    """

    # Attributes of Celery's that it does not document.
    retry_policy: dict[str, Any]
    chord_expires: int | None
    app: Celery
    url: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        policy = self.retry_policy
        backoff = ExponentialBackoff(cap=policy["interval_max"], base=policy["interval_start"])
        max_retries = policy["max_retries"]
        self.connparams["retry"] = Retry(backoff, -1 if max_retries is None else max_retries)

    def on_chord_part_return(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Count a finished part of a chord; the last part publishes the chord's body.

        Counting a part again changes nothing. The body may be published twice only if Redis goes
        back while it is published.
        """
        while True:
            join = _Join(str(request.group))
            token = _current.set(join)
            try:
                with publishing_of_chord(join.group, self.chord_expires or CHORD_TTL_SECONDS):
                    result = PrimaryBackend.on_chord_part_return(self, request, *args, **kwargs)
            finally:
                _current.reset(token)
            if not join.is_undone:
                return result

    @functools.cached_property
    def _own_scripts(self) -> dict[str, LuaScript]:
        """The scripts of a join, which a server knows only from this process."""
        texts = _CeleryScripts(app=self.app, url=self.url).texts()
        texts["extend"] = CHORD_EXTEND.text
        texts["clean"] = CHORD_PUBLISHED.text + texts["clean"]
        return {
            name: LuaScript(f"{text}\n-- {uuid.uuid4().hex}\n", f"chord_{name}")
            for name, text in texts.items()
        }

    @functools.cached_property
    def _chord_part_return_script(self) -> Script:
        """Celery's script, which counts a part and, for the last part, claims the body.

        If the reply is lost, the repeated script finds the claim taken: by this same call, as the
        token says.
        """
        command = self._own_scripts["count"].command

        def count_part(keys: list[Any], args: list[Any], client: Any) -> list[Any]:
            while True:
                try:
                    ready, added, size, is_claimed = client.execute_command(*command(keys, args))
                    break
                except NoScriptError:
                    for script in self._own_scripts.values():
                        script.load_into(client)
            if size and not is_claimed and ready == int(size) + int(added or 0):
                is_claimed = client.get(keys[-1]) == args[-1].encode()
            return [ready, added, size, is_claimed]

        return count_part

    @functools.cached_property
    def _chord_claim_extend_script(self) -> Script:
        def extend(keys: list[Any], args: list[Any], client: Any) -> Any:
            claim, size = (key.decode() if isinstance(key, bytes) else str(key) for key in keys)
            results, added = (size.removesuffix(".s") + suffix for suffix in (".j", ".t"))
            return self._run("extend", client, [claim, size, results, added], args)

        return extend

    @functools.cached_property
    def _chord_cleanup_script(self) -> Script:
        def clean(keys: list[Any], args: list[Any], client: Any) -> Any:
            return self._run("clean", client, [*keys, PUBLISHED + _current.get().group], args)

        return clean

    def _run(self, name: str, client: Any, keys: list[Any], args: list[Any]) -> Any:
        """The reply of a script after the count of a part; 0 if Redis has started since."""
        try:
            return client.execute_command(*self._own_scripts[name].command(keys, args))
        except NoScriptError:
            _current.get().is_undone = True
            CHORD_RELEASE.run(client, keys[:1], args[:1])
            return 0

    def _chord_publish_claim_expires(self, initial_expires: int, callback: Any) -> int:
        """Return the seconds for which only one worker may publish a chord's body: of one attempt.

        Celery's own value leaves time for every retry of the publish, which is hours with our
        policy. If the worker died meanwhile, a repeated header task could not publish the body.
        """
        return initial_expires

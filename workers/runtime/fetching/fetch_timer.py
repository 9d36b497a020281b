"""When a worker fetches: at once after a push notification, otherwise every `idle_delay` seconds.

A fetch asks Redis for messages (transport.py). An idle worker fetches a message at once, without
polling hundreds of times a second, and without a fetch by every idle worker for each message:

    start
      |     fetch finds no more                push
      v    ---------------------->         ------------>
    POLLING                        ARMED                 WOKEN
                                     ^                     |
                                     | fetch after the     | fetch is empty
                                     | short delay         v
                                     +---------------- BACKING_OFF

From every state, a fetch of as many messages as it asked for leads to POLLING, and a fetch of fewer
messages to ARMED.

* POLLING: there may be more messages. Fetch at once.
* ARMED: no message waits that this worker may take. A push notification starts the next fetch.
  Without notifications, or while messages wait that the worker may take later, the next fetch
  follows after the idle delay. Messages of a paused queue do not notify: a fetch each second finds
  out that the queue is resumed.
* WOKEN: a push notification came. Fetch at once.
* BACKING_OFF: another worker took the message. Fetch again after a short delay, and only then arm
  the notification: where many workers take messages all the time, not every worker fetches for
  each message (no thundering herd).

Push notifications are best effort (push_notifier.py). So they are checked now and then, and without
them the idle delay alone decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any

import redis

from primarch_fleet.queues import SEPARATOR, turns_list
from workers.runtime.fetching.push_notifier import PushNotifier

logger = logging.getLogger(__name__)

#: Seconds between a notification that led to an empty fetch and the next fetch.
BACKOFF_SECONDS = 0.004
#: Seconds between two attempts to connect for push notifications.
RECONNECT_SECONDS = 10.0
#: Seconds between two checks that no notification is missing.
CHECK_SECONDS = 5.0
#: Seconds between two fetches at most while messages wait in a paused queue.
PAUSED_SECONDS = 1.0


class FetchState(Enum):
    """What the timer waits for; see the diagram above."""

    POLLING = auto()
    ARMED = auto()
    WOKEN = auto()
    BACKING_OFF = auto()


class FetchTimer:
    """Decides when to fetch. For the thread of the hub.

    Args:
        parameters: Returns those of a Redis connection, for push notifications.
        idle_delay: Seconds between two fetches where no push notification can come.
        max_quiet: Seconds between two fetches where push notifications can come, and none does.
        clock: Seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        parameters: Callable[[], dict[str, Any]],
        idle_delay: float,
        max_quiet: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parameters, self._clock = parameters, clock
        self._idle_delay, self._max_quiet = idle_delay, max_quiet
        #: kombu's event loop; without it there are no push notifications.
        self.hub: Any = None
        self._state = FetchState.POLLING
        self._fetch_follows_push = False  # the fetch in flight
        self._fetch_at = 0.0  # the next fetch of the states that wait
        self._quiet_until: float | None = None  # the same, unless notifications are lost
        self._notifier: PushNotifier | None = None
        self._connect_at = 0.0  # the next attempt
        self._check_at = 0.0

    @property
    def due(self) -> bool:
        """Whether to fetch now."""
        if self._state in (FetchState.POLLING, FetchState.WOKEN):
            return True
        now = self._clock()
        if self._quiet_until is None or self._notifier is None or self._notifier.closed:
            return now >= self._fetch_at
        if now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            self._notifier.check()
        return now >= self._quiet_until

    def poll(self) -> None:
        """Make a fetch due now: the queues have changed."""
        self._state = FetchState.POLLING

    def on_fetch(self) -> None:
        """Record that a fetch starts, and enter the state that holds if it finds nothing."""
        self._quiet_until = None
        self._fetch_follows_push = self._state is FetchState.WOKEN
        self._state = FetchState.BACKING_OFF if self._fetch_follows_push else FetchState.ARMED
        self._wait(self._idle_delay)

    def on_messages(
        self, lists: Collection[str], *, more: bool, stay: bool = False, paused: bool = False
    ) -> None:
        """Record that the fetch found messages.

        Args:
            lists: The Redis lists that it asked, without those of paused queues with messages.
            more: Whether they may have more messages for this worker.
            stay: Whether messages stay that it may take later.
            paused: Whether messages wait in a paused queue.
        """
        if self._state is not FetchState.WOKEN:  # by a push during the fetch
            self._state = FetchState.POLLING if more else FetchState.ARMED
        if not more:
            self._arm(lists, stay, paused)

    def on_empty(self, lists: Collection[str], *, stay: bool = False, paused: bool = False) -> None:
        """Record that the fetch took nothing. The arguments are those of `on_messages`."""
        if self._fetch_follows_push:  # even if another push came meanwhile: that starts a fetch too
            self._wait(BACKOFF_SECONDS)
            self.hub.call_later(BACKOFF_SECONDS, wake_hub)
        else:
            self._arm(lists, stay, paused)

    def close(self) -> None:
        """Close the connection for push notifications."""
        if self._notifier is not None:
            self._notifier.close()

    def _wait(self, seconds: float) -> None:
        # Half the delay: the hub wakes after all of it, and the fetch must be due then.
        self._fetch_at = self._clock() + seconds / 2

    def _arm(self, lists: Collection[str], stay: bool, paused: bool) -> None:
        if paused and not lists:
            self._fetch_at = self._clock() + PAUSED_SECONDS
            return
        if self.hub is None:
            return
        if self._notifier is None or self._notifier.closed:
            self._connect()
        if self._notifier is None:
            return
        if stay:
            # Not those with a queue's name, which change whenever a worker takes a message.
            if with_priority := [name for name in lists if SEPARATOR in name]:
                self._notifier.arm(with_priority)
        else:  # messages that are put back have a tenant already
            self._notifier.arm([*lists, *map(turns_list, lists)])
            max_quiet = min(self._max_quiet, PAUSED_SECONDS) if paused else self._max_quiet
            self._quiet_until = self._clock() + max_quiet

    def _connect(self) -> None:
        now = self._clock()
        if now < self._connect_at or (self._notifier and self._notifier.unreliable):
            return
        self._connect_at, self._check_at = now + RECONNECT_SECONDS, now + CHECK_SECONDS
        try:
            self._notifier = PushNotifier(self._parameters(), self.hub, self._on_push)
        except (redis.RedisError, OSError) as error:
            action = {"action": "push_notifications_refused"}
            logger.warning("No push notifications, polling only: %s", error, extra=action)

    def _on_push(self) -> None:
        self._state = FetchState.WOKEN


def wake_hub() -> None:
    """Do nothing: to call this later wakes the hub, which checks `due` whenever it wakes."""

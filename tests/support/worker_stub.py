"""A worker that answers by the script of `FakeFleet`, from the queues of a real broker."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from primarch_fleet import FleetError
from primarch_fleet.cancellation import mark_key
from primarch_fleet.celery_app import producer_app
from primarch_fleet.queues import priority_lists
from primarch_fleet.requests import REQUESTS, Request
from primarch_fleet.testing import Answers, fake_completion
from primarch_fleet.testing.fake_answers import DEFAULT_TEXT, choose
from primarch_fleet.testing.fake_bodies import chunks
from tests.support.streams import writing

LISTS = [name for queue in ("realtime", "batch") for name in priority_lists(queue)]
#: Seconds between two looks at the queues.
PAUSE_SECONDS = 0.005


class WorkerStub:
    """Takes messages one by one, in the process of the test.

    Args:
        url: The broker.
    """

    def __init__(self, url: str) -> None:
        self.answer: Answers = DEFAULT_TEXT
        self._url, self._app = url, producer_app(url, 5.0)
        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._taking = threading.RLock()
        self._is_holding, self._ended = False, threading.Event()

    def hold(self) -> None:
        """Take no message from now on."""
        with self._taking:
            self._is_holding = True

    def release(self) -> None:
        """Take messages again."""
        self._is_holding = False

    def run(self) -> None:
        """Answer messages until `end`."""
        place = 0
        while not self._ended.wait(PAUSE_SECONDS):
            with self._taking:
                while not self._is_holding and (message := self._take()) is not None:
                    self._answer(message, place)
                    place += 1
        self._redis.close()
        self._app.close()

    def end(self) -> None:
        self._ended.set()

    def _take(self) -> dict[str, Any] | None:
        for name in LISTS:
            if text := self._redis.rpop(name):
                message: dict[str, Any] = json.loads(str(text))
                return message
        return None

    def _answer(self, message: dict[str, Any], place: int) -> None:
        task_id, lane = message["headers"]["id"], message["headers"]["task"].partition(".")[0]
        if self._redis.exists(mark_key(task_id)):
            return
        ((body, *_), *_) = json.loads(base64.b64decode(message["body"]))
        request = REQUESTS[message["headers"]["task"].partition(".")[2]].parse(body)
        answer = choose(self.answer, request, place)
        if isinstance(answer, FleetError):
            self._app.backend.store_result(task_id, answer, "FAILURE")
            return
        completion = fake_completion(
            answer, request, lane=lane, reason=message["headers"]["fleet_lane_reason"]
        )
        if request.streams:
            asyncio.run(self._stream(task_id, request, completion.body))
        self._app.backend.store_result(task_id, completion.to_wire(), "SUCCESS")

    async def _stream(self, task_id: str, request: Request, body: dict[str, Any]) -> None:
        async with writing(self._url) as writer:
            with writer.run(task_id) as publish:
                for chunk in chunks(request, body):
                    publish(chunk)


@contextmanager
def worker_stub(url: str) -> Iterator[WorkerStub]:
    """Answer the requests at a broker during the block."""
    worker = WorkerStub(url)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.end()
        thread.join()

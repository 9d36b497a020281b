"""Streams from a writer to its readers, over a real Valkey and without workers."""

import asyncio
import json
import socket
import threading
from typing import Any

import pytest
import redis
from celery.exceptions import TaskRevokedError

from primarch_fleet import AsyncFleet, Chunk, Fleet, errors
from primarch_fleet.streaming import stream_key
from tests.support.producer import DONE, finish, request
from tests.support.redis_server import RedisServer
from tests.support.relay import relay
from tests.support.streams import (
    STREAM_TTL_SECONDS,
    TASK,
    chunk,
    collect,
    publish_slowly,
    run,
    text,
    words,
    write,
    writing,
    written,
)
from workers import stream_writer


def test_chunks_are_read_as_they_were_written(fleet: Fleet, valkey_url: str) -> None:
    written(valkey_url, words(2_500))
    chunks = list(fleet.stream(TASK, timeout=5))
    assert [item.body for item in chunks] == [chunk(word) for word in words(2_500)]


def test_each_chunk_can_be_read_before_the_next_is_written(fleet: Fleet, valkey_url: str) -> None:
    async def work() -> list[str]:
        read = []
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as other:
            chunks = await other.stream(TASK, timeout=20)
            with writer.run(TASK) as publish:
                for word in words(20):
                    publish(chunk(word))
                    read.append((await anext(chunks)).text)
            assert await collect(chunks) == []
        return read

    assert run(work()) == words(20)


def test_sync_and_async_readers_see_the_same_chunks(fleet: Fleet, valkey_url: str) -> None:
    async def work() -> list[list[Chunk]]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as other:
            readers = [asyncio.create_task(collect(await other.stream(TASK))) for _ in range(20)]
            threads = [
                asyncio.create_task(asyncio.to_thread(list, fleet.stream(TASK))) for _ in range(3)
            ]
            await write(writer, words(300), pause=0.001)
            return await asyncio.gather(*readers, *threads)

    first, *others = run(work())
    assert text(first) == "".join(words(300))
    assert all(other == first for other in others)


def test_a_reader_can_resume_after_every_chunk(fleet: Fleet, valkey_url: str) -> None:
    written(valkey_url, words(40))
    chunks = list(fleet.stream(TASK))
    for number, item in enumerate(chunks, start=1):
        assert list(fleet.stream(TASK, after=item.id)) == chunks[number:]


def test_repeatedly_killed_connections_lose_and_repeat_no_chunk(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    """Of both sides: the writer does not know which of its writes were executed."""
    stop = threading.Event()
    kills = 0

    def kill_connections() -> None:
        nonlocal kills
        while not stop.wait(0.01):
            server.client_kill_filter(_type="normal", skipme=True)
            kills += 1

    async def work() -> list[Chunk]:
        async with writing(valkey_url) as writer:
            reader = asyncio.create_task(asyncio.to_thread(list, fleet.stream(TASK, timeout=30)))
            await write(writer, words(400), pause=0.005)
            while kills < 100:  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.01)
            stop.set()
            return await reader

    killer = threading.Thread(target=kill_connections)
    killer.start()
    try:
        chunks = run(work())
    finally:
        stop.set()
        killer.join()
    assert [item.text for item in chunks] == words(400)


def test_a_write_whose_reply_was_lost_is_stored_once(fleet: Fleet, valkey_url: str) -> None:
    with relay(valkey_url) as broker:
        broker.lose_replies(b"XADD", times=3)
        written(broker.url, words(10))
        assert broker.all_lost
    assert [item.text for item in fleet.stream(TASK, timeout=10)] == words(10)


def test_a_token_reaches_its_reader_while_the_event_loop_is_blocked(
    fleet: Fleet, valkey_url: str
) -> None:
    received = threading.Event()

    def read() -> None:
        next(fleet.stream(TASK, timeout=20))
        received.set()

    async def work() -> bool:
        async with writing(valkey_url) as writer:
            with writer.run(TASK) as publish:
                publish(chunk("first"))
                return received.wait(10)  # blocks the event loop

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert run(work())
    finally:
        reader.join()


def test_a_chunk_that_cannot_be_written_is_lost_and_other_streams_are_complete(
    fleet: Fleet, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    xadd, failed = redis.client.Pipeline.xadd, threading.Event()

    def failing(self: Any, name: str, fields: dict[str, str], *args: Any, **options: Any) -> Any:
        if "bad" in "".join(fields.values()):
            failed.set()
            raise ValueError("an unexpected error")
        return xadd(self, name, fields, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.client.Pipeline, "xadd", failing)

    async def work() -> None:
        async with writing(valkey_url) as writer:
            await write(writer, ["bad "], "one")
            assert failed.wait(10)
            await write(writer, words(10), "two")

    run(work())
    assert [item.text for item in fleet.stream("two", timeout=10)] == words(10)
    # Its end may have been lost with its chunk.
    with pytest.raises((errors.ResultTimeout, errors.StreamInterrupted)):
        next(fleet.stream("one", timeout=0.1))


def test_a_restart_of_the_broker_pauses_readers_and_not_the_writer(
    fleet: Fleet, valkey: RedisServer, valkey_url: str
) -> None:
    async def work() -> tuple[list[Chunk], list[Chunk]]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as other:
            async_reader = asyncio.create_task(collect(await other.stream(TASK, timeout=30)))
            reader = asyncio.create_task(asyncio.to_thread(list, fleet.stream(TASK, timeout=30)))
            with writer.run(TASK) as publish:
                await publish_slowly(publish, words(50))
                await asyncio.to_thread(valkey.kill)
                await publish_slowly(publish, words(50, 50))
                await asyncio.to_thread(valkey.start)
                await publish_slowly(publish, words(50, 100))
            return await reader, await async_reader

    for chunks in run(work()):
        assert [item.text for item in chunks] == words(150)


def test_readers_get_an_error_for_chunks_that_did_not_fit_the_buffer(
    fleet: Fleet, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_writer, "MAX_PENDING_BYTES", 1_000)
    written(valkey_url, words(200))  # before the first round trip ends
    with pytest.raises(errors.StreamInterrupted, match="Part of the stream"):
        list(fleet.stream(TASK, timeout=10))


def test_the_buffer_of_unwritten_chunks_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    big = chunk("x" * 2**20)

    async def work() -> None:
        async with writing(url) as writer:
            with writer.run(TASK) as publish:
                for _ in range(100):
                    publish(big)

    run(work())
    actions = [vars(record).get("action") for record in caplog.records]
    kept = 100 - actions.count("stream_chunk_dropped")
    assert 0 < kept * 2**20 <= stream_writer.MAX_PENDING_BYTES


def test_the_writer_waits_for_a_full_redis_and_logs_no_word_of_the_answer(
    fleet: Fleet, server: redis.Redis, valkey_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [{"word": f"secret{number}"} for number in range(20)]

    async def work() -> None:
        async with writing(valkey_url) as writer:
            with writer.run(TASK) as publish:
                publish(secrets[0])
                await asyncio.to_thread(next, fleet.stream(TASK, timeout=10))
                server.config_set("maxmemory", 1)
                try:
                    for secret in secrets[1:]:
                        publish(secret)
                    while not caplog.records:  # noqa: ASYNC110 - logging has no event
                        await asyncio.sleep(0.01)
                finally:
                    server.config_set("maxmemory", 0)
            await asyncio.to_thread(list, fleet.stream(TASK, timeout=10))

    run(work())
    assert "maxmemory" in caplog.text
    assert "secret" not in caplog.text
    assert [one.body for one in fleet.stream(TASK, timeout=10)] == secrets


def test_a_chunk_with_half_a_surrogate_pair_is_read_unchanged(
    fleet: Fleet, valkey_url: str
) -> None:
    """Some providers split a chunk within a surrogate pair."""
    written(valkey_url, ["a\ud83d", "\ude00b"])
    assert [item.text for item in fleet.stream(TASK, timeout=10)] == ["a\ud83d", "\ude00b"]


def test_a_second_worker_starts_the_stream_over_and_the_first_cannot_write(
    fleet: Fleet, valkey_url: str
) -> None:
    async def work() -> None:
        async with (
            writing(valkey_url) as first,
            writing(valkey_url) as second,
            AsyncFleet(valkey_url) as other,
        ):
            early = await other.stream(TASK, timeout=20)
            with pytest.raises(ZeroDivisionError), first.run(TASK) as old:
                old(chunk("old "))
                assert (await anext(early)).text == "old "
                with second.run(TASK) as new:
                    for word in words(20):
                        new(chunk(word))
                        old(chunk("zombie "))
                        await asyncio.sleep(0.002)
                raise ZeroDivisionError
            with pytest.raises(errors.StreamInterrupted, match="started over"):
                await collect(early)
            assert text(await collect(await other.stream(TASK, timeout=20))) == "".join(words(20))

    run(work())
    with pytest.raises(errors.StreamInterrupted):
        list(fleet.stream(TASK, after="1-1", timeout=5))


def test_a_new_run_has_a_greater_number_even_if_the_clock_goes_backwards(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    future = 2**45
    server.xadd(stream_key(TASK), {"opened": ""}, f"{future}-0")
    server.xadd(stream_key(TASK), {"chunk": json.dumps(chunk("old"))}, f"{future}-1")
    reader = fleet.stream(TASK, timeout=5)
    assert next(reader).text == "old"
    written(valkey_url, words(3))
    with pytest.raises(errors.StreamInterrupted, match="started over"):
        next(reader)
    chunks = list(fleet.stream(TASK, timeout=5))
    assert [item.text for item in chunks] == words(3)
    assert chunks[0].id == f"{future + 1}-1"


def test_a_stream_expires_after_the_last_write(
    fleet: Fleet, server: redis.Redis, valkey_url: str
) -> None:
    written(valkey_url, words(3))
    assert 400 < server.ttl(stream_key(TASK)) <= STREAM_TTL_SECONDS


def test_a_missing_stream_is_an_error_and_not_an_empty_answer(
    fleet: Fleet, server: redis.Redis
) -> None:
    ticket = fleet.submit(request(stream=True))
    finish(fleet, ticket.id)
    with pytest.raises(errors.StreamInterrupted, match="call result"):
        list(fleet.stream(ticket, timeout=20))
    assert fleet.stream(ticket).result(5) == DONE


@pytest.mark.parametrize(
    "failure",
    [
        (errors.RateLimited("slow down"), "FAILURE", errors.RateLimited),
        (errors.InvalidRequest("messages: wrong"), "FAILURE", errors.InvalidRequest),
        (TaskRevokedError("expired"), "REVOKED", errors.DeadlineExceeded),
        (TaskRevokedError("terminated"), "REVOKED", errors.Cancelled),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_a_failed_task_fails_its_readers_with_the_same_error(
    fleet: Fleet, valkey_url: str, failure: tuple[Exception, str, type[Exception]], started: bool
) -> None:
    """If a worker has written its end, and if no worker has: a dead letter, a revoked message."""
    stored, state, raised = failure
    ticket = fleet.submit(request(stream=True))
    if started:
        with pytest.raises(ZeroDivisionError):
            written_and_failed(valkey_url, ticket.id)
    finish(fleet, ticket.id, stored, state)
    with pytest.raises(raised):
        list(fleet.stream(ticket, timeout=20))

    async def ask() -> None:
        async with AsyncFleet(valkey_url) as other:
            await collect(await other.stream(ticket.id, timeout=20))

    with pytest.raises(raised):
        run(ask())


def written_and_failed(url: str, task: str) -> None:
    async def work() -> None:
        async with writing(url) as writer:
            with writer.run(task) as publish:
                publish(chunk("half "))
                raise ZeroDivisionError

    run(work())


def test_reading_a_task_that_does_not_run_times_out(fleet: Fleet, valkey_url: str) -> None:
    with pytest.raises(errors.ResultTimeout, match="no chunk within"):
        next(fleet.stream("unknown", timeout=0.2))

    async def ask() -> None:
        async with AsyncFleet(valkey_url) as other:
            with pytest.raises(errors.ResultTimeout):
                await anext(await other.stream("unknown", timeout=0.2))

    run(ask())


def test_a_reader_can_continue_after_a_timeout(fleet: Fleet, valkey_url: str) -> None:
    reader = fleet.stream(TASK, timeout=0.1)
    with pytest.raises(errors.ResultTimeout):
        next(reader)
    written(valkey_url, words(3))
    assert [item.text for item in reader] == words(3)


def test_an_unreachable_broker_is_an_error_within_the_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    with Fleet(url, timeout=1) as fleet, pytest.raises(errors.FleetUnavailable):
        next(fleet.stream("task", timeout=0.5))

    async def ask() -> None:
        async with AsyncFleet(url, timeout=1) as other:
            with pytest.raises(errors.FleetUnavailable):
                await anext(await other.stream("task", timeout=0.5))

    run(ask())


def test_a_reader_can_be_cancelled_at_any_moment_without_effect_on_others(
    fleet: Fleet, valkey_url: str
) -> None:
    async def work() -> list[Chunk]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as other:
            for steps in range(60):  # during the first read: connecting, sending, waiting
                reader = asyncio.create_task(collect(await other.stream(TASK)))
                for _ in range(steps):
                    await asyncio.sleep(0)
                reader.cancel()
                await asyncio.wait([reader])
                assert reader.cancelled()
            await write(writer, words(5))
            return await collect(await other.stream(TASK, timeout=10))

    assert [item.text for item in run(work())] == words(5)


def test_stream_submits_a_request_with_stream_true_and_rejects_the_batch_lane(
    fleet: Fleet, server: redis.Redis
) -> None:
    chunks = fleet.stream(request())
    [message] = [json.loads(text) for text in server.lrange("realtime\x06\x163", 0, -1)]
    assert message["headers"]["id"] == chunks.ticket.id  # type: ignore[union-attr]
    with pytest.raises(errors.InvalidRequest, match="stream"):
        fleet.stream(request(lane="batch"))
    batch = fleet.submit(request(lane="batch"))
    with pytest.raises(errors.InvalidRequest, match="call result"):
        fleet.stream(batch)

"""When the writer makes a round trip, measured at a real Valkey and its readers."""

import asyncio

import pytest
import redis

from primarch_fleet import AsyncFleet
from tests.support.streams import TASK, chunk, collect, run, text, words, writing
from workers import stream_writer


def round_trips(server: redis.Redis) -> int:
    return int(server.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])


def test_first_tokens_and_ends_are_written_at_once_and_other_chunks_together(
    server: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_writer, "WRITE_INTERVAL_SECONDS", 3600.0)
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    server.config_resetstat()

    async def work() -> tuple[str, str]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as fleet:
            readers = [await fleet.stream(task, timeout=20) for task in (TASK, "other")]
            with writer.run(TASK) as publish, writer.run("other") as publish_other:
                publish(role)
                publish(chunk("first "))
                received = [(await anext(readers[0])).body, (await anext(readers[0])).text]
                publish_other(chunk("second "))
                assert (await anext(readers[1])).text == "second "
                before = round_trips(server)
                for word in words(50):
                    publish(chunk(word))
                    await asyncio.sleep(0.001)
                assert round_trips(server) == before
            assert received == [role, "first "]
            return text(await collect(readers[0])), text(await collect(readers[1]))

    assert run(work()) == ("".join(words(50)), "")
    assert round_trips(server) <= 4  # two first tokens, two ends


def test_a_single_chunk_does_not_wait_for_the_end_of_the_stream(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[str]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as fleet:
            reader = await fleet.stream(TASK, timeout=20)
            with writer.run(TASK) as publish:
                publish(chunk("first "))
                received = [(await anext(reader)).text]
                publish(chunk("second "))
                return [*received, (await anext(reader)).text]

    assert run(work()) == ["first ", "second "]

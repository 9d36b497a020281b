"""When a writer makes a round trip, by what a real Valkey and its readers see of it."""

import asyncio

import pytest
import redis

from primarch_fleet import AsyncFleet
from tests.support.producer import CATALOGUE
from tests.support.streams import TASK, chunk, collect, run, text, words, writing
from workers import stream_writer


@pytest.fixture
def server(store: redis.Redis) -> redis.Redis:
    CATALOGUE.publish(store)
    return store


def round_trips(server: redis.Redis) -> int:
    return int(server.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])


def test_first_tokens_and_ends_go_at_once_and_the_rest_together(
    server: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_writer, "PACE", 3600.0)
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    server.config_resetstat()

    async def work() -> tuple[str, str]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as fleet:
            readers = [await fleet.stream(task, timeout=20) for task in (TASK, "other")]
            with writer.run(TASK) as one, writer.run("other") as two:
                one(role)
                one(chunk("first "))
                heard = [(await anext(readers[0])).body, (await anext(readers[0])).text]
                two(chunk("second "))
                assert (await anext(readers[1])).text == "second "
                before = round_trips(server)
                for word in words(50):
                    one(chunk(word))
                    await asyncio.sleep(0.001)
                assert round_trips(server) == before
            assert heard == [role, "first "]
            return text(await collect(readers[0])), text(await collect(readers[1]))

    assert run(work()) == ("".join(words(50)), "")
    assert round_trips(server) <= 4  # two first tokens, two ends


def test_a_chunk_that_nothing_follows_does_not_wait_for_the_end(
    server: redis.Redis, valkey_url: str
) -> None:
    async def work() -> list[str]:
        async with writing(valkey_url) as writer, AsyncFleet(valkey_url) as fleet:
            reader = await fleet.stream(TASK, timeout=20)
            with writer.run(TASK) as publish:
                publish(chunk("first "))
                heard = [(await anext(reader)).text]
                publish(chunk("second "))
                return [*heard, (await anext(reader)).text]

    assert run(work()) == ["first ", "second "]

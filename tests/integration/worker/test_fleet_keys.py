"""What every worker keeps in Redis, after Redis has lost it."""

from __future__ import annotations

import pytest
import redis

from primarch_fleet import Catalogue
from primarch_fleet.catalogue import CATALOGUE_KEY
from primarch_fleet.errors import NoCatalogue
from tasks.privacy import HASH_KEY
from tests.support.producer import CATALOGUE
from workers.observability.fleet_keys import FleetKeys
from workers.observability.heartbeat import Heartbeat


@pytest.fixture
def binary(valkey_url: str, store: redis.Redis) -> redis.Redis:
    return redis.Redis.from_url(valkey_url)


def beat(client: redis.Redis, keys: FleetKeys) -> None:
    """Send one heartbeat of a worker."""
    Heartbeat(client, lambda: {"realtime"}, restore=keys.restore).beat()


def catalogue(max_request_bytes: int) -> Catalogue:
    return CATALOGUE.model_copy(update={"max_request_bytes": max_request_bytes})


def test_an_emptied_redis_gets_catalogue_and_hash_key_with_the_next_heartbeat(
    binary: redis.Redis, store: redis.Redis
) -> None:
    keys = FleetKeys(binary, catalogue(1))
    keys.publish()
    hash_key = store.get(HASH_KEY)
    store.flushall()
    with pytest.raises(NoCatalogue):
        Catalogue.fetch(store)
    beat(binary, keys)
    assert Catalogue.fetch(store) == catalogue(1)
    assert store.get(HASH_KEY) == hash_key


@pytest.mark.parametrize("first_to_restore", ["old", "new"])
def test_of_two_catalogues_the_last_worker_to_start_publishes_its_own_for_good(
    binary: redis.Redis, store: redis.Redis, first_to_restore: str
) -> None:
    old, new = FleetKeys(binary, catalogue(1)), FleetKeys(binary, catalogue(2))
    old.publish()
    new.publish()
    store.flushall()
    for worker in (old, new) if first_to_restore == "old" else (new, old):
        beat(binary, worker)
    published = []
    for worker in (old, new, old, new):
        beat(binary, worker)
        published.append(Catalogue.fetch(store))
    assert published == [catalogue(2)] * 4


def test_a_catalogue_that_is_there_costs_a_heartbeat_no_command(
    binary: redis.Redis, store: redis.Redis
) -> None:
    keys = FleetKeys(binary, catalogue(1))
    keys.publish()
    beat(binary, keys)  # which also looks for lost tasks, now and then
    store.config_resetstat()
    beat(binary, keys)
    stats = store.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert stats["cmdstat_zremrangebyscore"]["calls"] == 1, "that of the heartbeat"


def test_a_catalogue_that_is_removed_is_published_again(
    binary: redis.Redis, store: redis.Redis
) -> None:
    keys = FleetKeys(binary, catalogue(1))
    keys.publish()
    store.delete(CATALOGUE_KEY)
    beat(binary, keys)
    assert Catalogue.fetch(store) == catalogue(1)


def test_a_catalogue_that_was_published_by_hand_stays(
    binary: redis.Redis, store: redis.Redis
) -> None:
    keys = FleetKeys(binary, catalogue(1))
    CATALOGUE.publish(store)
    beat(binary, keys)
    assert Catalogue.fetch(store) == CATALOGUE

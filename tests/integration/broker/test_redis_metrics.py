"""What Flower exports of the Redis server: its memory, its risks, and its certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from primarch_fleet import redis_advisories
from primarch_fleet.redis_support import once
from scheduler.fleet_metrics.redis_server import RedisServer
from tests.support.certificates import Authority, Certificate
from tests.support.redis_server import DURABLE, redis_server
from tests.support.tls_relay import TLSRelay, tls_relay

LIMIT_BYTES = 64 * 2**20


def scraped(url: str) -> dict[str, float]:
    """The samples of a scrape: `name` or `name label`."""
    registry = CollectorRegistry()
    with once(url) as client:
        registry.register(RedisServer(client, url))
        text = generate_latest(registry).decode()
    return {
        " ".join([sample.name.removeprefix("primarch_redis_"), *sample.labels.values()]): value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for value in [sample.value]
    }


def test_a_safe_server_has_no_risk_and_shows_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DURABLE | {"maxmemory": str(LIMIT_BYTES)}
    with redis_server(tmp_path, options) as server:
        samples = scraped(server.url)
        assert 0 < samples.pop("memory_bytes used") < LIMIT_BYTES
        assert samples == {
            "memory_bytes max": LIMIT_BYTES,
            **{f"warning {risk}": 0 for risk in ("eviction", "persistence", "version")},
        }
        monkeypatch.setitem(redis_advisories.FLOORS, "valkey", {(99, 0): 1})
        assert scraped(server.url)["warning version"] == 1


def test_a_server_that_may_lose_results_is_a_risk_by_its_name(tmp_path: Path) -> None:
    options = DURABLE | {"maxmemory-policy": "allkeys-lru", "appendonly": "no"}
    with redis_server(tmp_path, options) as server:
        samples = scraped(server.url)
    assert (samples["warning eviction"], samples["warning persistence"]) == (1, 1)


def test_a_user_who_may_not_ask_gets_no_samples(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.client().acl_setuser("default", nopass=True, enabled=True, commands=["-info"])
        assert scraped(server.url) == {}


def test_a_scrape_without_redis_has_no_samples(caplog: Any) -> None:
    with redis.Redis(port=1, decode_responses=True) as nowhere:
        metrics = [*RedisServer(nowhere, "redis://127.0.0.1:1/0").collect()]
    assert not any(metric.samples for metric in metrics)
    assert [getattr(record, "action", "") for record in caplog.records] == ["redis_metrics_failed"]


class Secured(NamedTuple):
    """A server behind TLS."""

    relay: TLSRelay
    authority: Authority

    def url(self, options: str) -> str:
        return f"rediss://127.0.0.1:{self.relay.port}/0?{options}"

    @property
    def verified(self) -> str:
        return self.url(f"ssl_ca_certs={self.authority.file}")

    def issue(self, valid_for: timedelta) -> Certificate:
        return self.authority.issue("127.0.0.1", valid_for)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    authority = Authority(tmp_path)
    with (
        redis_server(tmp_path / "redis") as server,
        tls_relay(server.port, authority.issue("127.0.0.1")) as relay,
    ):
        yield Secured(relay, authority)


def test_the_moment_when_the_certificate_expires_follows_its_renewal(secured: Secured) -> None:
    for valid_for in (timedelta(minutes=10), timedelta(hours=10)):
        secured.relay.present(secured.issue(valid_for))
        samples = scraped(secured.verified)
        expected = time.time() + valid_for.total_seconds()
        assert samples["certificate_expiry_timestamp_seconds"] == pytest.approx(expected, abs=60)
        assert samples["warning certificate"] == 0


def test_a_client_certificate_is_presented_where_the_server_asks_for_it(secured: Secured) -> None:
    own = secured.issue(timedelta(hours=1))
    secured.relay.present(secured.issue(timedelta(hours=1)), clients_of=secured.authority)
    url = f"{secured.verified}&ssl_certfile={own.certificate}&ssl_keyfile={own.key}"
    assert "certificate_expiry_timestamp_seconds" in scraped(url)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_a_certificate_that_is_not_verified_is_a_risk(secured: Secured, option: str) -> None:
    samples = scraped(secured.url(f"ssl_ca_certs={secured.authority.file}&{option}"))
    assert samples["warning certificate"] == 1
    assert "certificate_expiry_timestamp_seconds" not in samples

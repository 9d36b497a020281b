"""What a worker says about the server at its start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from primarch_fleet import redis_advisories
from primarch_fleet.redis_server_info import ServerInfo
from tests.support.redis_server import DURABLE, redis_server
from workers.observability.server_check import check_server, risks

SAFE = ServerInfo("id", appendonly=True, eviction_policy="noeviction")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, []),
        ({"eviction_policy": "volatile-lru"}, ["volatile-lru"]),
        ({"appendonly": False}, ["appendonly is no"]),
        ({"eviction_policy": "allkeys-lfu", "appendonly": False}, ["allkeys-lfu", "appendonly"]),
    ],
)
def test_the_settings_that_may_lose_requests_are_named(
    changed: dict[str, Any], named: list[str]
) -> None:
    found = risks(SAFE._replace(**changed)).values()
    assert len(found) == len(named)
    assert all(name in text for name, text in zip(named, found, strict=True))


def test_a_server_with_known_vulnerabilities_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as server:
        check_server(server.client())
        assert caplog.records == []  # the server of the tests has none
        monkeypatch.setitem(redis_advisories.FLOORS, "valkey", {(99, 0): 1})
        check_server(server.client())
    assert [vars(record)["action"] for record in caplog.records] == ["redis_outdated"]
    assert "upgrade to 99.0.1 or newer" in caplog.text


def test_a_real_server_is_warned_of_once_or_the_check_is_said_to_be_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**DURABLE, "maxmemory-policy": "volatile-lru", "appendonly": "no"}
    with redis_server(tmp_path, options) as server:
        check_server(server.client())
        restricted = server.client()
        restricted.acl_setuser("default", nopass=True, enabled=True, commands=["-info"])
        check_server(restricted)
    assert [vars(record)["action"] for record in caplog.records] == [
        "redis_unsafe",
        "redis_check_skipped",
    ]
    assert "volatile-lru" in caplog.text
    assert "appendonly is no" in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)

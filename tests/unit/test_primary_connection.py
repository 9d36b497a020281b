"""What a server's reply to HELLO and its refusals mean to a connection."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import MasterDownError

from primarch_fleet import redis_support
from primarch_fleet.errors import ConfigError
from primarch_fleet.primary_connection import NotPrimary, check_role, primary_class
from primarch_fleet.redis_url import normalized

PRIMARY = {"server": "redis", "mode": "standalone", "role": "master"}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({}, None),
        ({"role": "replica"}, NotPrimary),
        ({"mode": "cluster"}, ConfigError),
        ({"mode": "sentinel"}, ConfigError),
    ],
)
@pytest.mark.parametrize("form", ["text", "bytes", "list"])
def test_a_reply_to_hello_tells_whether_the_server_is_a_primary(
    changed: dict[str, str], error: type[Exception] | None, form: str
) -> None:
    pairs = PRIMARY | changed
    replies: dict[str, Any] = {
        "text": pairs,
        "bytes": {name.encode(): value.encode() for name, value in pairs.items()},
        "list": [text.encode() for pair in pairs.items() for text in pair],
    }
    if error is None:
        check_role(replies[form])
    else:
        with pytest.raises(error):
            check_role(replies[form])


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (redis.ReadOnlyError("You can't write"), True),
        (MasterDownError("Link with MASTER is down"), True),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), True),
        (redis.ResponseError("BUSY Valkey is busy running a script."), True),
        (redis.ResponseError("BUSYGROUP Consumer Group name already exists"), False),
        (redis.ResponseError("UNBLOCKED force unblock"), True),
        (
            redis.ResponseError("Error running script: @user_script: 2: -READONLY You can't write"),
            True,
        ),
        (redis.OutOfMemoryError("command not allowed"), False),
        (redis.ResponseError("WRONGTYPE Operation against a READONLY key"), False),
    ],
)
def test_a_refusal_of_writes_breaks_all_older_connections_to_the_address(
    error: redis.ResponseError, is_refusal: bool
) -> None:
    kind = primary_class(redis.Connection)
    host = str(error)  # no other case has this address
    older, elsewhere = kind(host=host), kind(host="another")
    older.connected_at = elsewhere.connected_at = 1.0
    assert (kind(host=host).refusal(error) is not None) is is_refusal
    assert (older.is_outdated, elsewhere.is_outdated) == (is_refusal, False)


@pytest.mark.parametrize(
    "build",
    [
        redis_support.once,
        redis_support.once_async,
        redis_support.patient_async,
        lambda url: redis_support.stream_reader(url, 1.0, 1.0, 1),
        lambda url: redis_support.stream_reader_async(url, 1.0, 1),
        lambda url: redis_support.subscriber_async(url, 1),
        lambda _: redis_support.once_on_parameters({"port": 1}, 1),
    ],
)
def test_the_connections_of_every_client_are_those_of_a_primary(build: Any) -> None:
    kind = build("redis://127.0.0.1:1/0").connection_pool.connection_class
    assert primary_class(kind) is kind


@pytest.mark.parametrize(
    "url", ["sentinel://a:26379/0;sentinel://b:26379/0", "redis://a/0;redis://b/0", "sentinel://a"]
)
def test_sentinel_or_a_list_of_servers_is_an_error_that_says_what_to_use(url: str) -> None:
    with pytest.raises(ConfigError, match="HAProxy"):
        normalized(url)

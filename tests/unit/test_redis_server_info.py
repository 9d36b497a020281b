"""What is read from the reply of INFO."""

import pytest

from primarch_fleet.redis_server_info import ServerInfo


@pytest.mark.parametrize(
    ("version", "aof", "has_waitaof"),
    [("7.2.4", 1, True), ("8.0.1", 1, True), ("7.0.15", 1, False), ("7.2.4", 0, False)],
)
def test_waitaof_is_there_since_7_2_with_an_append_only_file(
    version: str, aof: int, has_waitaof: bool
) -> None:
    info = ServerInfo.parse({"redis_version": version, "aof_enabled": aof})
    assert info.has_waitaof is has_waitaof


def test_a_proxy_that_leaves_out_every_field_is_read_as_unknown() -> None:
    assert ServerInfo.parse({}) == ServerInfo("", (0,), False, "")


def test_the_memory_of_the_machine_is_the_limit_only_without_maxmemory() -> None:
    reply = {"used_memory": 7, "maxmemory": 0, "total_system_memory": 900}
    assert ServerInfo.parse(reply)[-2:] == (7, 900)
    assert ServerInfo.parse(reply | {"maxmemory": 100})[-2:] == (7, 100)

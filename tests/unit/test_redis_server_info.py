"""What is read from the reply of INFO."""

from primarch_fleet.redis_server_info import ServerInfo


def test_a_proxy_that_leaves_out_every_field_is_read_as_unknown() -> None:
    assert ServerInfo.parse({}) == ServerInfo("", False, "")


def test_the_memory_of_the_machine_is_the_limit_only_without_maxmemory() -> None:
    reply = {"used_memory": 7, "maxmemory": 0, "total_system_memory": 900}
    assert ServerInfo.parse(reply)[-2:] == (7, 900)
    assert ServerInfo.parse(reply | {"maxmemory": 100})[-2:] == (7, 100)

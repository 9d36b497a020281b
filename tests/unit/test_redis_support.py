"""All Redis clients and all Lua scripts of the fleet come from primarch_fleet/redis_support.py."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import ROOT
from primarch_fleet import redis_support
from primarch_fleet.redis_support import LuaScript
from tests.support.imports import ORDER

URL = "redis://127.0.0.1:1/0"
HOME = ROOT / "primarch_fleet" / "redis_support.py"
#: Calls that build a client or a connection pool, and calls that run a script.
BUILDERS = {"Redis", "StrictRedis", "ConnectionPool", "BlockingConnectionPool"}
BUILDERS |= {"from_url", "from_pool"}
RUNNERS = {"eval", "evalsha", "eval_ro", "evalsha_ro", "register_script", "script_load"}
COMMANDS = {"EVAL", "EVALSHA", "SCRIPT", "SCRIPT LOAD"}


def forbidden(path: Path) -> Iterator[str]:
    """What only redis_support may call or name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in BUILDERS | RUNNERS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}()"
        elif isinstance(node, ast.Constant) and node.value in COMMANDS:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"


def test_clients_and_scripts_come_from_redis_support() -> None:
    sources = [path for package in ORDER for path in (ROOT / package).rglob("*.py")]
    assert [one for path in sources if path != HOME for one in forbidden(path)] == []
    assert len(list(forbidden(HOME))) > 5  # the check sees what it looks for


def policy(client: Any) -> tuple[Any, ...]:
    """How long a client waits, and how often it repeats a command."""
    connection = client.connection_pool.make_connection()
    timeouts = connection.socket_timeout, connection.socket_connect_timeout
    return (*timeouts, connection.retry.get_retries())


def test_each_profile_waits_and_retries_as_its_name_says() -> None:
    assert policy(redis_support.once(URL)) == (5, 5, 0)
    assert policy(redis_support.once(URL, 0.5)) == (0.5, 0.5, 0)
    assert policy(redis_support.once_async(URL, 2)) == (2, 2, 0)
    assert policy(redis_support.stream_reader(URL, 5, 1, 10)) == (6, 5, 0)
    assert policy(redis_support.stream_reader_async(URL, 5, 10)) == (None, 5, 0)
    assert policy(redis_support.subscriber_async(URL, 8))[2] == 1
    assert policy(redis_support.patient_async(URL))[::2] == (10, -1)


@pytest.mark.parametrize("text", [True, False])
def test_a_profile_decodes_replies_unless_it_is_told_not_to(text: bool) -> None:
    profiles = redis_support.once, redis_support.once_async, redis_support.patient_async
    for profile in profiles:
        pool = profile(URL, text=text).connection_pool
        assert pool.connection_kwargs["decode_responses"] is text


def test_a_client_on_kombus_parameters_keeps_them_but_for_its_timeouts() -> None:
    client = redis_support.once_on_parameters({"host": "h", "db": 3, "socket_timeout": None}, 16)
    pool = client.connection_pool
    assert pool.max_connections == 16
    assert pool.connection_kwargs.items() >= {"host": "h", "db": 3, "socket_timeout": 5}.items()


def test_a_script_is_its_files_one_after_the_other(tmp_path: Path) -> None:
    for name in ("part", "whole"):
        (tmp_path / f"{name}.lua").write_text(f"-- {name}\n")
    script = LuaScript.load(tmp_path / "part.lua", tmp_path / "whole.lua")
    assert (script.name, script.text) == ("whole", "-- part\n-- whole\n")
    assert script.command(["k"], ["a", 1]) == ("EVALSHA", script.sha, 1, "k", "a", 1)
    assert script.command(["k"], by_text=True) == ("EVAL", script.text, 1, "k")

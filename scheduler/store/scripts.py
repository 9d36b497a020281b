"""The Lua scripts of the batch lane's store."""

from __future__ import annotations

from pathlib import Path

from primarch_fleet.redis_support import LuaScript
from scheduler.model.job import RequestGroup
from scheduler.store import keys

_LUA = Path(__file__).with_name("lua")

#: By name. Those that change a group's backlog begin with lua/backlog.lua.
SCRIPTS = {
    name: LuaScript.load(_LUA / f"{name}.lua")
    for name in (
        *("begin_completion", "lease", "advance", "close_job", "add_cost"),
        *("set_fields", "set_once", "attempts", "known"),
    )
} | {
    name: LuaScript.load(_LUA / "backlog.lua", _LUA / f"{name}.lua")
    for name in ("park", "create_job", "requeue", "withdraw", "finish", "adopt")
}


def backlog_keys(group: RequestGroup) -> list[str]:
    """Return KEYS[1] to KEYS[4] of the scripts that begin with lua/backlog.lua."""
    return [*keys.backlog(group), keys.SIZES]

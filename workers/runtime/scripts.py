"""The Lua scripts of the workers, each with the parts that it starts with."""

from pathlib import Path

from primarch_fleet.budgets import LEDGER_LUA
from primarch_fleet.queues import HEADERS, PLACEHOLDERS, TURNS
from primarch_fleet.redis_support import LuaScript

_LUA = Path(__file__).with_name("lua")
_MESSAGE = _LUA / "message.lua"
_QUEUE = (TURNS, PLACEHOLDERS, _MESSAGE, _LUA / "queue.lua")
_LEASE = _LUA / "lease.lua"
_RESULT = _LUA / "result.lua"
_LETTERS = _LUA / "dead_letters.lua"
_TAKE = (*_QUEUE, HEADERS, _LUA / "deadline.lua", _LUA / "take.lua")

FETCH = LuaScript.load(*_TAKE, _LUA / "fetch.lua")
FETCH_NEAR = LuaScript.load(*_TAKE, _LUA / "fetch_near.lua")
RELEASE = LuaScript.load(*_QUEUE, _LEASE, _LUA / "release.lua")
DEAD_LETTER = LuaScript.load(_MESSAGE, _LEASE, _LETTERS, _LUA / "dead_letter.lua")
DEAD_BROADCAST = LuaScript.load(_LETTERS, _LUA / "dead_broadcast.lua")
REPLAY = LuaScript.load(_LETTERS, _LUA / "replay.lua")
ACK = LuaScript.load(_LUA / "ack.lua")
RENEW = LuaScript.load(_LUA / "renew.lua")
EXPIRED = LuaScript.load(_LUA / "outage.lua", _LUA / "adopt.lua", _LUA / "expired.lua")
NEAR_DEADLINE = LuaScript.load(TURNS, HEADERS, _LUA / "near_deadline.lua")
MOVE = LuaScript.load(*_QUEUE, _LUA / "move.lua")
STORE = LuaScript.load(LEDGER_LUA, _RESULT, _LUA / "store.lua")
STORE_MANY = LuaScript.load(_RESULT, _LUA / "store_many.lua")
CHORD_EXTEND = LuaScript.load(_LUA / "chord_extend.lua")
CHORD_PUBLISHED = LuaScript.load(_LUA / "chord_published.lua")
CHORD_RELEASE = LuaScript.load(_LUA / "chord_release.lua")
PUBLISH = LuaScript.load(_LUA / "publish.lua")
COMPLETE_MARK = LuaScript.load(_LUA / "complete_mark.lua")
ANNOUNCE = LuaScript.load(_LUA / "announce.lua")
OPEN_STREAM = LuaScript.load(_LUA / "open_stream.lua")

"""The Lua scripts of the workers, each with the parts that it starts with."""

from pathlib import Path

from primarch_fleet.budgets import LEDGER_LUA
from primarch_fleet.cancellation import OUTCOME_LUA
from primarch_fleet.queues import HEADERS, PLACEHOLDERS, TURNS
from primarch_fleet.redis_support import LuaScript

_LUA = Path(__file__).with_name("lua")
_SHARED = _LUA / "shared"
_MESSAGE = _SHARED / "message.lua"
_QUEUE = (TURNS, PLACEHOLDERS, _MESSAGE, _SHARED / "queue.lua")
_LEASE = _SHARED / "lease.lua"
_RESULT = (OUTCOME_LUA, _SHARED / "result.lua")
_LETTERS = _SHARED / "dead_letters.lua"
_TAKE = (*_QUEUE, HEADERS, _SHARED / "deadline.lua", _SHARED / "take.lua")

FETCH = LuaScript.load(*_TAKE, _LUA / "fetch.lua")
FETCH_BY_PREFIX = LuaScript.load(*_TAKE, _LUA / "fetch_by_prefix.lua")
RELEASE = LuaScript.load(*_QUEUE, _LEASE, _LUA / "release.lua")
DEAD_LETTER = LuaScript.load(_MESSAGE, _LEASE, _LETTERS, _LUA / "dead_letter.lua")
DEAD_BROADCAST = LuaScript.load(_LETTERS, _LUA / "dead_broadcast.lua")
REPLAY = LuaScript.load(_LETTERS, _LUA / "replay.lua")
ACK = LuaScript.load(OUTCOME_LUA, _LUA / "ack.lua")
RENEW = LuaScript.load(_LUA / "renew.lua")
EXPIRED = LuaScript.load(_SHARED / "outage.lua", _SHARED / "adopt.lua", _LUA / "expired.lua")
NEAR_DEADLINE = LuaScript.load(TURNS, HEADERS, _LUA / "near_deadline.lua")
MOVE_MESSAGE = LuaScript.load(*_QUEUE, _LUA / "move_message.lua")
STORE_RESULT = LuaScript.load(LEDGER_LUA, *_RESULT, _LUA / "store_result.lua")
STORE_RESULTS = LuaScript.load(*_RESULT, _LUA / "store_results.lua")
CHORD_EXTEND = LuaScript.load(_LUA / "chord_extend.lua")
CHORD_PUBLISHED = LuaScript.load(_LUA / "chord_published.lua")
CHORD_RELEASE = LuaScript.load(_LUA / "chord_release.lua")
PUBLISH = LuaScript.load(OUTCOME_LUA, _LUA / "publish.lua")
COMPLETE_MARK = LuaScript.load(_LUA / "complete_mark.lua")
ANNOUNCE = LuaScript.load(_LUA / "announce.lua")
OPEN_STREAM = LuaScript.load(_LUA / "open_stream.lua")

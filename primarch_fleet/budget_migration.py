"""Budgets of versions that counted in micro-dollars: moved to nano-dollars once."""

from __future__ import annotations

import redis

from primarch_fleet.budgets import KEPT_DAYS, LUA, ledger_keys
from primarch_fleet.redis_support import LuaScript

#: Redis key: exists once all budgets count in nano-dollars.
UNIT_KEY = "fleet:budget:unit"
_OLD_LEDGER, _OLD_RESERVATIONS = "fleet:budget:ledger:", "fleet:budget:open:"
_MIGRATE = LuaScript.load(LUA / "ledger.lua", LUA / "migrate.lua")


def migrate_budgets(client: redis.Redis) -> None:
    """Move what tenants have spent and reserved to nano-dollars; nothing is lost or counted twice.

    The first call in a Redis reads the names of all keys; later calls are one round trip. What
    workers of an older version spend after the first call is not counted.

    Args:
        client: With `decode_responses`.
    """
    if client.exists(UNIT_KEY):
        return
    for key in client.scan_iter(f"{_OLD_LEDGER}*", count=1000):
        tenant_id = str(key).removeprefix(_OLD_LEDGER)
        keys = [*ledger_keys(tenant_id), key, f"{_OLD_RESERVATIONS}{tenant_id}"]
        _MIGRATE.run(client, keys, ["", KEPT_DAYS * 86_400])
    client.set(UNIT_KEY, "nanousd")

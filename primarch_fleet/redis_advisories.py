"""The oldest versions of Redis and Valkey without known vulnerabilities, by series.

SECURITY.md names the advisories. Update both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: When the tables were compared with the advisories.
AS_OF = "November 2026"
#: Server -> series -> first patch release that has all fixes. Series that are not listed get no
#: fixes any more, unless they are newer than all of these.
#: https://github.com/redis/redis/releases, https://github.com/valkey-io/valkey/releases
FLOORS: dict[str, Mapping[tuple[int, int], int]] = {
    "redis": {
        (6, 2): 23,
        (7, 2): 15,
        (7, 4): 10,
        (8, 2): 8,
        (8, 4): 5,
        (8, 6): 5,
        (8, 8): 1,
    },
    "valkey": {(7, 2): 14, (8, 0): 10, (8, 1): 9, (9, 0): 5, (9, 1): 1},
}


class ServerVersion(NamedTuple):
    """The version of a server."""

    #: "redis" or "valkey"; empty if the server does not tell its version.
    name: str = ""
    numbers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> ServerVersion:
        """Read the reply of INFO. Valkey also reports a version of Redis, which it resembles."""
        name = "valkey" if "valkey_version" in reply else "redis"
        text = str(reply.get(f"{name}_version") or "")
        numbers = tuple(int(part) for part in text.split(".") if part.isdecimal())
        return cls(name, numbers) if numbers else cls()

    def advice(self) -> str:
        """Return what to upgrade to because of known vulnerabilities; "" if none is known."""
        floors = FLOORS.get(self.name, {})
        if len(self.numbers) < 3 or not floors:
            return ""
        series, patch = (self.numbers[0], self.numbers[1]), self.numbers[2]
        floor = floors.get(series)
        if series > max(floors) or (floor is not None and patch >= floor):
            return ""
        if floor is None:
            series, floor = next(item for item in floors.items() if item[0] > series)
        version = ".".join(map(str, self.numbers))
        fixed = f"{series[0]}.{series[1]}.{floor}"
        return (
            f"{self.name} {version} has known vulnerabilities ({AS_OF}): "
            f"upgrade to {fixed} or newer"
        )

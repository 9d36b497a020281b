"""Users of the fleet's Redis, each with what its processes need: `python -m config.acl FOLDER URL`.

Writes into the folder, readable only by its owner:

* `users.acl`, for the server's option `aclfile`. It has hashes of the passwords, and turns off the
  default user, who needs none.
* `<user>.env` for each user, with FLEET_REDIS_URL. A file that exists keeps its password; remove it
  for a new one.

Run the command again after a new engine, then `ACL LOAD` as admin. The rules need Redis 7.0 or
Valkey, for selectors: https://valkey.io/topics/acl/#selectors
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from config.fleet import load
from config.settings import settings
from primarch_fleet.budgets import ledger_keys
from primarch_fleet.cancellation import LEASED_TASKS, mark_key
from primarch_fleet.catalogue import CATALOGUE_KEY
from primarch_fleet.contract import BATCH_QUEUE, REALTIME_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.deployment_health import CHECKS_KEY
from primarch_fleet.errors import ConfigError, FleetError
from primarch_fleet.lane_health import (
    PARKED_REQUESTS_KEY,
    PERIODIC_RUNS_KEY,
    heartbeat_key,
    throughput_key,
    workers_key,
)
from primarch_fleet.outgoing import OPEN_KEY
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from primarch_fleet.redis_url import normalized
from primarch_fleet.streaming import stream_key

#: What the libraries send on each connection.
_CONNECT = (
    "-@all +auth +hello +ping +select +reset +quit +multi +exec +discard +time +unwatch "
    "+client|setinfo +client|setname +client|id"
)
#: Commands of the processes that are trusted: not those that administer the server.
_TRUSTED = "~* &* +@all -@admin -@dangerous +info +role"
#: Commands that name each key they use: strings, hashes, lists and sorted sets.
_KEYED = "+@string +@hash +@list +@sortedset -@dangerous"
#: The key, and the channel, of a task's result and of a group's.
_RESULT, _GROUP = "celery-task-meta-*", "celery-taskset-meta-*"
#: Counts and sums without a prompt: workers/runtime/dead_letters.py, primarch_fleet/budgets.py and
#: scheduler/store/keys.py.
_COUNTED = (
    *("fleet:dead_letters", "fleet:dead_letter_counts", ledger_keys("*")[0]),
    *(CHECKS_KEY, PERIODIC_RUNS_KEY, "fleet:batch:reserved"),
)
#: Keys of the HTTP API: api/store/.
API_KEYS = "fleet:api:*"
#: The jobs of the batch lane, its groups, and since when each request waits, without the requests:
#: scheduler/store/keys.py.
_JOBS = ("fleet:batch:jobs", "fleet:batch:job:*", "fleet:batch:groups", "fleet:batch:waiting:*")
#: A list of a queue for each priority, as a pattern: primarch_fleet/queues.py. `?` stands for a
#: control character, which a file of rules cannot have.
_STEPS = ("", "??3", "??6", "??9")


def rules(queues: Sequence[str], database: int = 0) -> dict[str, str]:
    """Return the rules of each user: https://valkey.io/topics/acl/#acl-rules.

    Args:
        queues: The names of all queues of the fleet.
        database: Its number, which is in the names of Celery's channels.
    """
    events, control = f"/{database}.celeryev/*", f"/{database}.celery.pidbox"
    return {
        "producer": _producer(queues),
        "api": _api(queues),
        # Links of a task may go to any queue, and keys of LiteLLM's Router have no common prefix.
        "worker": _TRUSTED,
        "scheduler": _TRUSTED,
        "beat": _beat(events),
        "flower": _flower(queues, events, control),
        "operator": _TRUSTED,
        "admin": "~* &* +@all",
    }


def _producer(queues: Sequence[str]) -> str:
    """Submit, wait, stream and cancel; see SECURITY.md for what a hostile producer can do.

    A script needs the permission to read and write its KEYS, and each of its commands needs its
    own: so the selector of EVALSHA has no other command.
    """
    lists = [f"{_literal(queue)}{step}" for queue in queues for step in _STEPS]
    idempotency = "fleet:idempotency:*"
    return " ".join(
        (
            f"{_CONNECT} +info +subscribe +unsubscribe &{_RESULT} &{_GROUP}",
            _selector("+eval +evalsha", _keys("~", [*lists, idempotency])),
            _selector("+lpush", _keys("%W~", lists)),
            _selector("+llen", _keys("%R~", [*lists, *(f"{name}??turns??*" for name in lists)])),
            _selector("+lrange", _keys("%R~", (f"{name}??turns" for name in lists))),
            _selector("+get +exists +set", _keys("~", [idempotency])),
            _selector("+zadd +zscore +zmscore", _keys("~", [OPEN_KEY])),
            _selector("+get +mget +getrange", _keys("%R~", [_RESULT, _GROUP, CATALOGUE_KEY])),
            _selector("+xread", _keys("%R~", [stream_key("*")])),
            _selector("+exists", _keys("%R~", [heartbeat_key("*")])),
            _selector("+hvals", _keys("%R~", [throughput_key("*"), PERIODIC_RUNS_KEY])),
            _selector("+hlen", _keys("%R~", [PARKED_REQUESTS_KEY])),
            _selector("+smembers", _keys("%R~", [PAUSED_QUEUES_KEY])),
            # Groups and chords, by Celery itself.
            _selector("+set +setex +expire +publish", f"~{_GROUP} &{_GROUP}"),
        )
    )


def _api(queues: Sequence[str]) -> str:
    """What a producer does, and what the HTTP API stores; its page needs the user `operator`."""
    return " ".join(
        (
            _producer(queues),
            # Without commands that need no key: SCAN would list the keys of all others.
            _selector(f"{_KEYED} +eval +evalsha +del +unlink +exists +expire", f"~{API_KEYS}"),
            _selector("+zrangebylex", _keys("%R~", [LEASED_TASKS])),
        )
    )


def _beat(events: str) -> str:
    """Send the scheduler's periodic tasks, and the events that say so.

    kombu keeps the queues of an exchange in sets; the exchange has the name of the default queue.
    """
    lists = [f"{SCHEDULER_QUEUE}{step}" for step in _STEPS]
    return " ".join(
        (
            _CONNECT,
            _selector("+lpush +llen", _keys("%W~", lists)),
            _selector("+sadd +smembers", _keys("~", [f"_kombu.binding*.{REALTIME_QUEUE}"])),
            _selector("+publish", f"&{events}"),
        )
    )


def _flower(queues: Sequence[str], events: str, control: str) -> str:
    """Show events and workers, control workers, and export scheduler/fleet_metrics; no result.

    The age of a queue, and what is asked of a request that waits or runs, are in its messages: a
    script may read them.
    """
    lists = [f"{_literal(queue)}{step}" for queue in queues for step in _STEPS]
    messages = [*lists, *(f"{name}??turns*" for name in lists)]
    replies = ["*.reply.celery.pidbox*", "_kombu.binding*", "celeryev.*"]
    return " ".join(
        (
            f"{_CONNECT} +info +script|exists +script|load +subscribe +psubscribe +unsubscribe "
            f"+punsubscribe +publish &{events} &{control}",
            _selector("+eval +evalsha", _keys("~", messages)),
            _selector("+llen +lindex +lrange", _keys("%R~", messages)),
            _selector("+exists", _keys("%R~", [mark_key("*")])),
            _selector("+llen +hgetall", _keys("%R~", _COUNTED)),
            _selector("+zcount", _keys("%R~", [workers_key("*")])),
            _selector("+zscore +zrangebylex", _keys("%R~", [OPEN_KEY, LEASED_TASKS])),
            _selector("+hget", _keys("%R~", ["fleet:leases"])),
            _selector("+hlen", _keys("%R~", [PARKED_REQUESTS_KEY])),
            _selector("+smembers +hget", _keys("%R~", [PAUSED_QUEUES_KEY, "fleet:batch:pauses"])),
            _selector("+zrange +hmget +smembers", _keys("%R~", _JOBS)),
            _selector("+@list +@set +@sortedset +del +exists +eval +evalsha", _keys("~", replies)),
            _selector(
                "+set +get +del +@sortedset +@hash +eval +evalsha", "~unacked*"
            ),  # kombu's own
        )
    )


def _selector(commands: str, keys: str) -> str:
    return f"(-@all {commands} {keys})"


def _keys(access: str, patterns: Iterable[str]) -> str:
    return " ".join(f"{access}{pattern}" for pattern in patterns)


def _literal(name: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in name)


def write(folder: Path, url: str, queues: Sequence[str]) -> None:
    """Write the files of all users. Raises ConfigError for a wrong URL."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    lines = ["user default reset off"]
    database = int(urlsplit(normalized(url)).path.strip("/"))
    for user, rule in rules(queues, database).items():
        password = _password(folder / f"{user}.env", user, url)
        digest = hashlib.sha256(password.encode()).hexdigest()
        lines.append(f"user {user} reset on #{digest} {rule}")
    _write_private(folder / "users.acl", "".join(f"{line}\n" for line in lines))


def _password(path: Path, user: str, url: str) -> str:
    """The password of a user: that of the file, which is written again, or a new one."""
    password = None
    if path.exists():
        password = urlsplit(path.read_text().strip().partition("=")[2]).password
    password = unquote(password) if password else secrets.token_urlsafe(32)
    scheme, _, address = normalized(url).partition("://")
    _write_private(path, f"FLEET_REDIS_URL={scheme}://{user}:{password}@{address}\n")
    return password


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(text)


def main(arguments: list[str] | None = None) -> None:
    """Write the files; exit with status 1 if the configuration or the URL is wrong."""
    parser = argparse.ArgumentParser(prog="config.acl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", help="of Redis, without a user: rediss://redis.example:6379/0")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        if urlsplit(normalized(options.url)).username is not None:
            raise ConfigError("write the URL without a user; the command adds each user to it")
        engines = [engine.queue for engine in load(settings().config).engines]
        queues = (REALTIME_QUEUE, BATCH_QUEUE, SCHEDULER_QUEUE, *dict.fromkeys(engines))
        write(options.folder, options.url, queues)
    except FleetError as error:
        sys.exit(f"config.acl: {error}")


if __name__ == "__main__":
    main()

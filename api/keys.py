"""Bearer keys: who calls, and what the caller may do. Only hashes of keys are known here."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from api.errors import NO_RETRY, ApiError
from config.api import ROLES, ApiKey, Role
from config.fleet import load
from primarch_fleet.contract import LANES
from primarch_fleet.errors import ConfigError

logger = logging.getLogger(__name__)

#: Every key starts with this prefix, so that scanners of source code can find a lost key.
KEY_PREFIX = "sk-fleet-"
#: Random bytes of a key: too many to guess, so a plain hash of the key is enough.
_KEY_BYTES = 32
#: Seconds between two looks at the file's time.
_CHECK_SECONDS = 2.0


@dataclass(frozen=True)
class Caller:
    """Who calls: a key of the configuration."""

    name: str
    tenant: str
    role: Role = "caller"
    #: Lanes that the caller may use.
    lanes: Sequence[str] = LANES
    #: Patterns of the models that the caller may use.
    models: Sequence[str] = ("*",)
    sees_prompts: bool = False

    def may(self, role: Role) -> bool:
        """Return whether the caller has at least this role."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_use(self, model: str) -> bool:
        """Return whether the caller may use a model."""
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)


#: The caller of an API without keys, which only processes of this machine can reach.
ANYONE = Caller("anyone", "default", "operator", sees_prompts=True)


def new_key() -> tuple[str, str]:
    """Return a new key and its hash for fleet.yaml."""
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return key, key_hash(key)


def key_hash(key: str) -> str:
    """Return the hash of a key, as fleet.yaml has it."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


class Keys:
    """The keys of a configuration.

    Args:
        keys: None of them: every caller is ANYONE.
        now: Returns the present moment.
    """

    def __init__(
        self, keys: Sequence[ApiKey], now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._keys, self._now = keys, now

    def caller(self, bearer: str | None) -> Caller:
        """Return who has a key.

        The time that this takes does not depend on how much of a wrong key is right.

        Raises:
            ApiError: Status 401: there is no key, or it is wrong or expired.
        """
        if not self._keys:
            return ANYONE
        if not bearer:
            raise _unauthorized("no API key: send it as `Authorization: Bearer KEY`")
        digest = key_hash(bearer)
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if not matches:
            raise _unauthorized("the API key is not known")
        (key,) = matches
        if key.expires is not None and key.expires <= self._now():
            raise _unauthorized("the API key has expired")
        return Caller(
            key.name,
            key.tenant,
            key.role,
            LANES if key.lanes is None else key.lanes,
            ("*",) if key.models is None else key.models,
            key.sees_prompts,
        )


class KeyFile:
    """The `api` section of a fleet.yaml, read again when the file has changed.

    A changed file that is wrong is logged, and the section stays as it was.

    Args:
        path: The file.

    Raises:
        ConfigError: The file is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._version = path, _version(path)
        #: As the file has it; inside `followed`, at most _CHECK_SECONDS ago.
        self.section = load(path).api

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Look for changes of the file during the block."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                await asyncio.to_thread(self.look)  # reading a large file takes seconds
            except Exception:
                action = {"action": "configuration_unreadable"}
                logger.exception("api: the changed file could not be read", extra=action)

    def look(self) -> None:
        """Read the file if it has changed."""
        if (version := _version(self._path)) == self._version:
            return
        self._version = version
        try:
            section = load(self._path).api
        except ConfigError as error:
            logger.error("api: %s", error, extra={"action": "configuration_refused"})
            return
        if self.section.keys and not section.keys:
            # Without keys the whole network would be let in.
            logger.error(
                "api: the changed file has no keys; the keys stay. Restart to serve without keys",
                extra={"action": "configuration_refused"},
            )
            return
        self.section = section


def _version(path: Path) -> tuple[int, int]:
    """What changes with the file."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


def _unauthorized(message: str) -> ApiError:
    return ApiError(
        401, "invalid_api_key", message, headers=NO_RETRY | {"www-authenticate": "Bearer"}
    )

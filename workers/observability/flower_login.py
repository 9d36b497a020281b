"""The login of Flower: a user and a random password, made at the first start and kept in a file."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from primarch_fleet.errors import ConfigError

#: Flower's variables for logins of the operator's own: passwords, or accounts of an OAuth provider.
#: https://flower.readthedocs.io/en/latest/config.html#basic-auth
BASIC_AUTH, OAUTH = "FLOWER_BASIC_AUTH", "FLOWER_AUTH"

_USER = "fleet"


class FlowerLogin(NamedTuple):
    """What Flower asks for."""

    #: `user:password`, or several, separated by commas.
    basic_auth: str
    #: For a person, once: the login and where it is kept. "" if the file was there.
    announcement: str = ""


def flower_login(folder: Path, environment: Mapping[str, str]) -> FlowerLogin | None:
    """Return the login of the data folder, and make it if there is none.

    Only the file's owner can read it.

    Args:
        environment: Where a login of the operator's own may be.

    Returns:
        None if there is a login of the operator's own.

    Raises:
        ConfigError: The file has no login, or cannot be read or written.
    """
    if environment.get(BASIC_AUTH) or environment.get(OAUTH):
        return None
    path = folder / "flower-login"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _make(path)
    except FileExistsError:
        return FlowerLogin(_read(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; or set {BASIC_AUTH}=user:password") from None


def _make(path: Path) -> FlowerLogin:
    password = secrets.token_urlsafe(24)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{_USER}:{password}\n")
    announcement = f"Login of Flower: user {_USER}, password {password} (kept in {path})"
    return FlowerLogin(f"{_USER}:{password}", announcement)


def _read(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}") from None
    if not re.fullmatch(r"[^\s:,]+:[^\s,]+(,[^\s:,]+:[^\s,]+)*", text):
        raise ConfigError(f"{path} has no user:password: remove it, a new password is made")
    return text

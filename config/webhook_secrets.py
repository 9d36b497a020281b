"""Secrets of signed webhooks (https://www.standardwebhooks.com), in the environment."""

from __future__ import annotations

import base64
import os
from contextlib import suppress

from config.litellm_params import ENVIRONMENT_PREFIX
from primarch_fleet.errors import ConfigError

#: A secret is this prefix and base64.
KEY_PREFIX = "whsec_"


def read_secrets(reference: str, owner: str) -> list[str]:
    """Return the secrets of a variable: several, separated by spaces, while one is replaced.

    Args:
        reference: `os.environ/NAME`.
        owner: What the secrets are for, in the message of an error.

    Raises:
        ConfigError: The variable is missing or malformed; the text names it.
    """
    variable = reference.removeprefix(ENVIRONMENT_PREFIX)
    secrets = os.environ.get(variable, "").split()
    if not secrets:
        raise ConfigError(f"{variable}: not set; it must hold the webhook_secret of {owner}")
    if not all(map(_is_secret, secrets)):
        raise ConfigError(f"{variable}: a webhook secret must be {KEY_PREFIX} and base64")
    return secrets


def _is_secret(text: str) -> bool:
    key = b""
    with suppress(ValueError):
        key = base64.b64decode(text.removeprefix(KEY_PREFIX), validate=True)
    # A signature with an empty key proves nothing.
    return bool(key) and text.startswith(KEY_PREFIX)

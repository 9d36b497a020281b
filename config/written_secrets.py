"""Secrets that a LiteLLM proxy's file writes out: they move into the environment of the process.

Such a file has a placeholder (`api_key: none`) where a server needs no key, or the key itself. The
configuration refers to each by a variable, like to all secrets: neither a copy of it nor a message
has the value.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from config.litellm_params import ENVIRONMENT_PREFIX, literal_secrets
from config.section import Values

#: Keys of a proxy's file that hold parameters of accounts.
ACCOUNT_KEYS = frozenset({"credential_values", "default_litellm_params", "litellm_params"})
#: Before the mark of a value, in the name of its variable.
VARIABLE_PREFIX = "LITELLM_CONFIG_SECRET_"


def move_to_environment(values: Values) -> tuple[Values, list[str]]:
    """Return the values with a reference in place of each account's secret, and their paths.

    The name of a variable stays the same while the secret does: accounts are stored by it.
    """
    paths = [path for path in literal_secrets(values) if ACCOUNT_KEYS & set(path.split("."))]
    return (_with_references(values, frozenset(paths), "") if paths else values), paths


def _with_references(values: Any, paths: frozenset[str], path: str) -> Any:
    if path in paths:
        return _reference(values)
    if isinstance(values, dict):
        return {
            key: _with_references(value, paths, f"{path}.{key}".lstrip("."))
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [
            _with_references(value, paths, f"{path}.{index}") for index, value in enumerate(values)
        ]
    return values


def _reference(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    name = VARIABLE_PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12].upper()
    os.environ[name] = text
    return ENVIRONMENT_PREFIX + name


def set_variables(variables: Values) -> Values:
    """Set the variables of a proxy's file that are not set yet; return those without a secret.

    A value that refers to another variable is not set here: the load of fleet.yaml does that.
    """
    texts = {name: str(value) for name, value in variables.items() if value is not None}
    for name, text in texts.items():
        if not text.startswith(ENVIRONMENT_PREFIX):
            os.environ.setdefault(name, text)
    secret = {path.partition(".")[0] for path in literal_secrets(texts)}
    return {name: text for name, text in texts.items() if name not in secret}

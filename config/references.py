"""References to the environment, `os.environ/NAME`, that the fleet reads when it loads a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from config.litellm_params import ENVIRONMENT_PREFIX, is_price, is_secret, resolve
from config.section import Values
from primarch_fleet.errors import ConfigError

#: Parameters that say which model a deployment is. The rest are the account's: workers resolve
#: those for each call, so that no secret is in the configuration.
_NAMES = frozenset({"base_model", "custom_llm_provider", "litellm_credential_name", "model"})
#: What has names and prices in a deployment. `params` is another name of `litellm_params`.
_SECTIONS = ("litellm_params", "params", "model_info")


def text_of(value: object) -> str:
    """Return a text, or the variable that it refers to; "" if the variable is not set."""
    text = "" if value is None else str(value)
    if not text.startswith(ENVIRONMENT_PREFIX):
        return text
    return os.environ.get(text.removeprefix(ENVIRONMENT_PREFIX), "")


def with_values(deployment: Values) -> Values:
    """Return a deployment with the environment's values in place of references to names and prices.

    Of these, what is null counts as not written, as in LiteLLM.

    Args:
        deployment: A deployment of fleet.yaml, or an entry of a LiteLLM proxy's `model_list`.

    Raises:
        ValueError: A variable is not set, or a price is no number; the error names it and the key.
    """
    result = dict(deployment)
    if "model_name" in result:
        result["model_name"] = _value("model_name", result["model_name"])
    for section in _SECTIONS:
        if isinstance(values := deployment.get(section), dict):
            result[section] = dict(_values(section, values))
    return result


def _values(section: str, values: Values) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = str(key)
        is_read = name in _NAMES or is_price(name) or section == "model_info"
        if not is_read or is_secret(name):
            yield key, value
        elif value is not None:
            yield key, _value(f"{section}.{name}", value)


def _value(path: str, written: Any) -> Any:
    try:
        value = resolve(written)
    except ConfigError as error:
        raise ValueError(f"{path}: {error}") from None
    if not (isinstance(value, str) and is_price(path)):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{path}: must be a number, of dollars for one token") from None

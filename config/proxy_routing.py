"""The routing of a LiteLLM proxy's file as the `routing` section of fleet.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from config.routing import ROUTER_SETTINGS
from config.section import Values
from config.wildcards import STAR

#: Settings of LiteLLM's Router that `routing` has under the same name.
ROUTING = frozenset(
    {
        "allowed_fails",
        "content_policy_fallbacks",
        "context_window_fallbacks",
        "cooldown_time",
        "disable_cooldowns",
        "enable_tag_filtering",
        "fallbacks",
        "model_group_alias",
        "num_retries",
        "routing_strategy",
        "stream_timeout",
        "timeout",
    }
)
#: Settings of the module `litellm` that routing has: name there -> key of `routing`. LiteLLM lets
#: the Router's stand there too.
MODULE_ROUTING = {name: name for name in ROUTING} | {
    "default_fallbacks": "default_fallbacks",
    "request_timeout": "timeout",
}


def routing_section(
    module: Values, router: Values, models: Iterable[str], unserved: set[str]
) -> Values:
    """Return the `routing` section: the Router's settings override those of the module.

    Args:
        module: The settings of the module `litellm`.
        router: The settings of the Router.
        models: The models that the file serves.
        unserved: The models that it has and the fleet cannot serve.

    Raises:
        ValueError: A fallback has parameters of its own.
    """
    named = {
        MODULE_ROUTING[name]: value for name, value in module.items() if name in MODULE_ROUTING
    }
    named |= {name: value for name, value in router.items() if name not in ROUTER_SETTINGS}
    default = named.pop("default_fallbacks", None) or []
    tables = {name: _table(name, named[name]) for name in named if name.endswith("fallbacks")}
    tables.setdefault("fallbacks", {}).setdefault(STAR, default)
    tables = {name: _for_models(table, models, unserved) for name, table in tables.items()}
    settings = {name: value for name, value in router.items() if name in ROUTER_SETTINGS}
    values = {**named, **tables, "router_settings": settings}
    if values.get("routing_strategy") == "usage-based-routing":
        values["routing_strategy"] = "usage-based-routing-v2"
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def _for_models(
    table: dict[str, list[str]], models: Iterable[str], unserved: set[str]
) -> dict[str, list[str]]:
    """A table of fallbacks with an entry for each model that `*` stands for."""
    rest = table.pop(STAR, [])
    common = {model: [one for one in rest if one != model] for model in models} if rest else {}
    return {
        model: [one for one in fallbacks if one not in unserved]
        for model, fallbacks in {**common, **table}.items()
        if model not in unserved
    }


def _table(name: str, value: Any) -> dict[str, list[str]]:
    """A table of fallbacks, which LiteLLM writes as a list of maps."""
    maps = [value] if isinstance(value, dict) else value or []
    table = {model: models for one in maps for model, models in one.items()}
    for model, models in table.items():
        if not all(isinstance(one, str) for one in models):
            raise ValueError(
                f"{name}.{model}: write the names of models; parameters are not supported"
            )
    return table

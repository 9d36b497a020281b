"""The file of a LiteLLM proxy, `config.yaml`, as values of fleet.yaml.

https://docs.litellm.ai/docs/proxy/config_settings. Settings of the proxy that have no meaning in
the fleet are reported by name; unknown ones are errors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from config.listed_models import kind_of
from config.litellm_params import (
    PROXY_ONLY,
    LitellmParams,
    NameKind,
    did_you_mean,
    is_price,
    known_names,
    resolve,
)
from config.proxy_entry import FREE, inline_entry
from config.proxy_routing import MODULE_ROUTING, ROUTING, routing_section
from config.references import with_values
from config.routing import ROUTER_SETTINGS
from config.section import Values, merge
from config.wildcards import expanded
from config.written_secrets import move_to_environment, set_variables
from config.yaml_file import YamlFile
from primarch_fleet.contract import ModelKind
from primarch_fleet.validation import explain

logger = logging.getLogger(__name__)

#: Settings of the module `litellm` that change what is sent to providers: the realtime worker sets
#: them as they are.
MODULE_SETTINGS = frozenset(
    {
        "add_function_to_prompt",
        "aiohttp_trust_env",
        "anthropic_prompt_caching_ttl",
        "bedrock_neutralize_orphaned_tool_blocks",
        "bedrock_request_metadata_fields",
        "custom_prompt_dict",
        "disable_add_transform_inline_image_block",
        "disable_aiohttp_transport",
        "disable_aiohttp_trust_env",
        "disable_anthropic_gemini_context_caching_transform",
        "disable_copilot_system_to_assistant",
        "disable_stop_sequence_limit",
        "enable_anthropic_prompt_caching",
        "enable_azure_ad_token_refresh",
        "enable_gemini_default_thinking_level_low",
        "enable_json_schema_validation",
        "filter_invalid_headers",
        "force_ipv4",
        "gemini_include_thoughts_default",
        "http2",
        "modify_params",
        "openai_system_messages_first",
        "provider_url_destination_allowed_hosts",
        "reasoning_auto_summary",
        "reasoning_effort_rounding",
        "route_all_chat_openai_to_responses",
        "ssl_certificate",
        "ssl_ecdh_curve",
        "ssl_security_level",
        "ssl_verify",
        "use_aiohttp_transport",
        "use_chat_completions_url_for_anthropic_messages",
        "user_url_allowed_hosts",
        "user_url_validation",
        "vertex_ai_safety_settings",
        "vertex_location",
        "vertex_project",
    }
)
#: Keys of an entry of `model_list`. LiteLLM also reads the limits beside the parameters.
LIMITS = frozenset({"rpm", "tpm"})
ENTRY_KEYS = frozenset({"litellm_params", "model_info", "model_name"}) | LIMITS
#: A name of one of these sections has no meaning in another, and is no mistake of spelling.
SETTINGS: tuple[NameKind, ...] = ("router_settings", "litellm_settings", "general_settings")
#: The setting of the Router with parameters for each entry.
DEFAULT_PARAMS = "default_litellm_params"
#: Sections whose secrets are those of accounts.
_WITH_ACCOUNTS = frozenset({"credential_list", "model_list", "router_settings"})
#: All sections that are read.
_HANDLED_SECTIONS = _WITH_ACCOUNTS | {
    "environment_variables",
    "general_settings",
    "litellm_settings",
}
#: What replaces a setting that has no meaning here.
REPLACEMENTS = {
    "litellm_settings.cache": "requests ask for cached answers by cache_ttl",
    "litellm_settings.callbacks": "workers serve Prometheus metrics",
    "litellm_settings.failure_callback": "workers serve Prometheus metrics",
    "litellm_settings.max_budget": "tenants have budgets",
    "litellm_settings.success_callback": "workers serve Prometheus metrics",
    "router_settings.redis_host": "processes share their state through FLEET_REDIS_URL",
    "router_settings.redis_password": "processes share their state through FLEET_REDIS_URL",
    "router_settings.redis_port": "processes share their state through FLEET_REDIS_URL",
    "router_settings.redis_url": "processes share their state through FLEET_REDIS_URL",
}


def with_proxy_file(file: Values, path: Path) -> Values:
    """Return fleet.yaml's values with those of a proxy's file. fleet.yaml's own override them.

    A deployment of fleet.yaml overrides the keys of the entry with its id.

    Raises:
        ValueError: The file cannot be read, or has an unknown name; the error names both.
    """
    try:
        values = _Conversion(_read(path)).values()
    except ValueError as error:
        names_place = str(error).startswith(f"{path.resolve()}:")
        raise ValueError(str(error) if names_place else f"{path}: {error}") from None
    if secrets := values.pop("secrets"):
        logger.warning(
            "%s: %s: a secret that is written out; os.environ/NAME keeps it out of the file",
            path,
            ", ".join(secrets),
        )
    for name in values.pop("free"):
        logger.warning(
            "%s: %s has no price and a private address: it counts as free; set "
            "input_cost_per_token in its model_info if it is not",
            path,
            name,
        )
    for name in values.pop("ignored"):
        instead = f"; instead, {REPLACEMENTS[name]}" if name in REPLACEMENTS else ""
        logger.warning("%s: %s has no meaning in the fleet and is ignored%s", path, name, instead)
    deployments = _merge_by_id(values.pop("deployments"), file.get("deployments") or [])
    return merge(values, file) | {"deployments": deployments}


def _merge_by_id(entries: list[Values], own: list[Any]) -> list[Any]:
    by_id = {entry["id"]: entry for entry in entries}
    merged = []
    for deployment in own:
        name = deployment.get("id") if isinstance(deployment, dict) else None
        merged.append(merge(by_id.pop(name, {}), deployment) if name in by_id else deployment)
    return [*merged, *by_id.values()]


def _read(path: Path) -> Values:
    """Read a proxy's file with those that it includes: lists are joined, other values replaced."""
    merged: Values = {}
    pending, seen = [path], set[Path]()
    while pending:
        current = pending.pop(0).resolve()
        if current in seen:
            continue
        seen.add(current)
        values = _parse(current)
        pending += [current.parent / name for name in _includes(values)]
        for name, value in values.items():
            joined = isinstance(value, list) and isinstance(merged.get(name), list)
            merged[name] = [*merged[name], *value] if joined else value
    return merged


def _parse(path: Path) -> Values:
    values = YamlFile(path).values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a LiteLLM proxy's file: it has no keys")
    return values


def _includes(values: Values) -> list[str]:
    includes = values.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise ValueError("include: must be a list of file names")
    return includes


class _Conversion:
    """The conversion of one proxy's file."""

    def __init__(self, proxy: Values) -> None:
        accounts = {name: proxy[name] for name in _WITH_ACCOUNTS & proxy.keys()}
        moved, self._secrets = move_to_environment(accounts)
        self._proxy = {**proxy, **moved}
        #: Paths of settings that have no meaning here.
        self._ignored: list[str] = []
        #: Models of kinds that the fleet does not serve.
        self._unserved: set[str] = set()
        #: Paths of entries without a price at a private address.
        self._free: list[str] = []

    def values(self) -> Values:
        """Return the values of fleet.yaml, and the `ignored` settings."""
        self._check(self._proxy, "", "sections", _HANDLED_SECTIONS)
        variables = set_variables(self._section("environment_variables", dict))
        module = self._settings(
            "litellm_settings", MODULE_SETTINGS.union(MODULE_ROUTING, {"drop_params"})
        )
        self._settings("general_settings", frozenset())
        router = self._settings(
            "router_settings",
            ROUTING | ROUTER_SETTINGS | {"default_fallbacks", DEFAULT_PARAMS},
        )
        defaults = router.pop(DEFAULT_PARAMS, None) or {}
        if "drop_params" in module:
            defaults = {"drop_params": module["drop_params"], **defaults}
        aliases = router.get("model_group_alias") or module.get("model_group_alias") or {}
        deployments = list(self._deployments(defaults, aliases))
        models = dict.fromkeys(one["model"] for one in deployments)
        return {
            "deployments": deployments,
            "routing": routing_section(module, router, models, self._unserved - models.keys()),
            "litellm_settings": {
                name: value for name, value in module.items() if name in MODULE_SETTINGS
            },
            "environment_variables": variables,
            "ignored": self._ignored,
            "secrets": self._secrets,
            "free": self._free,
        }

    def _section(self, name: str, kind: type) -> Any:
        value = self._proxy.get(name)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise ValueError(f"{name}: must be a {'list' if kind is list else 'map'}")
        return value

    def _settings(self, section: str, used: frozenset[str]) -> Values:
        """The settings of a section that are used here, with the environment's values."""
        settings = self._section(section, dict)
        self._check(settings, f"{section}.", section, used)  # type: ignore[arg-type]
        return {
            # Workers resolve parameters of accounts.
            name: value if name == DEFAULT_PARAMS else resolve(value)
            for name, value in settings.items()
            if name in used
        }

    def _check(self, settings: Values, path: str, kind: NameKind, used: frozenset[str]) -> None:
        """Refuse unknown names, and record those that have no meaning here."""
        sections = SETTINGS if kind in SETTINGS else (kind,)
        for name in settings:
            if name in used:
                continue
            if not any(name in known_names(section) for section in sections):
                raise ValueError(
                    f"{path}{name}: unknown to LiteLLM; {did_you_mean(str(name), kind)}"
                    "correct or remove it"
                )
            self._ignored.append(f"{path}{name}")

    def _deployments(self, defaults: Values, aliases: Iterable[str]) -> Iterator[Values]:
        ids: dict[str, int] = {}
        for index, entry in expanded(list(self._entries()), aliases):
            path = f"model_list.{index}"
            try:
                deployment = self._deployment(entry, defaults, path)
                is_served = self._is_served(deployment, path)
            except ValidationError as error:
                raise ValueError(f"{path}.litellm_params.{explain(error)}") from None
            except ValueError as error:
                raise ValueError(f"{path}.{error}") from None
            if not is_served:
                continue
            ids[deployment["id"]] = count = ids.get(deployment["id"], 0) + 1
            yield deployment if count == 1 else {**deployment, "id": f"{deployment['id']}-{count}"}

    def _entries(self) -> Iterator[Any]:
        """Yield the entries of `model_list` with the environment's values in their names."""
        for index, entry in enumerate(self._section("model_list", list)):
            try:
                yield with_values(entry) if isinstance(entry, dict) else entry
            except ValueError as error:
                raise ValueError(f"model_list.{index}.{error}") from None

    def _deployment(self, entry: Any, defaults: Values, path: str) -> Values:
        if not isinstance(entry, dict) or not isinstance(entry.get("litellm_params"), dict):
            raise ValueError("litellm_params: missing; write model and the account's parameters")
        name, info = entry.get("model_name"), entry.get("model_info") or {}
        if not isinstance(name, str) or not name:
            raise ValueError("model_name: missing; write the name that producers use")
        limits = {key: entry[key] for key in LIMITS & entry.keys()}
        params = {**defaults, **limits, **self._with_credential(entry["litellm_params"])}
        ignored = [f"{path}.{key}" for key in entry if key not in ENTRY_KEYS]
        ignored += [f"{path}.litellm_params.{key}" for key in params if key in PROXY_ONLY]
        self._ignored += [setting for setting in ignored if setting not in self._ignored]
        params = {key: value for key, value in params.items() if key not in PROXY_ONLY}
        own = {key: value for key, value in params.items() if key != "model" and not is_price(key)}
        LitellmParams.model_validate(own)
        return {
            "id": str(info["id"]) if info.get("id") else _entry_id(name, params),
            "model": name,
            "litellm_params": params,
            "model_info": {key: value for key, value in info.items() if key != "id"},
        }

    def _is_served(self, deployment: Values, path: str) -> bool:
        """Whether the fleet serves the kind of model. Takes down what the file does not say."""
        entry = inline_entry(deployment)
        kind = kind_of(entry.listed) if entry.listed else None
        if kind not in (None, "batch", *get_args(ModelKind)):
            self._unserved.add(deployment["model"])
            self._ignored.append(f"{path} ({deployment['model']}, {kind})")
            return False
        if kind is None and "embed" in deployment["litellm_params"]["model"]:
            deployment["model_info"] |= {"mode": "embedding"}
        if entry.is_own_server:
            deployment["model_info"] |= FREE
            self._free.append(f"{path} ({deployment['model']})")
        return True

    def _with_credential(self, params: Values) -> Values:
        """The parameters with those of the entry of `credential_list` that they name."""
        name = params.get("litellm_credential_name")
        if name is None:
            return params
        for credential in self._section("credential_list", list):
            if resolve(credential.get("credential_name")) == name:
                own = {key: params[key] for key in params if key != "litellm_credential_name"}
                return {**(credential.get("credential_values") or {}), **own}
        raise ValueError(
            f"litellm_params.litellm_credential_name: {name} is not in credential_list; "
            "add it there"
        )


def _entry_id(model_name: str, params: Values) -> str:
    """An id that is the same in each process, and as long as the entry stays the same."""
    text = json.dumps([model_name, params], sort_keys=True, default=str)
    return f"{model_name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

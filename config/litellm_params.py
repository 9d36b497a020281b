"""LiteLLM's `litellm_params`: names, secrets, and the environment variables that they refer to."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from config.section import Section, Values
from primarch_fleet.errors import ConfigError

#: Written from the installed LiteLLM: importing it takes seconds.
NAMES_FILE = Path(__file__).with_name("litellm_names.json")
#: What comes before the name of an environment variable, as LiteLLM writes it.
ENVIRONMENT_PREFIX = "os.environ/"
#: What LiteLLM fetches by itself, and what is no secret: a token of the machine's own identity.
REFERENCE_PREFIXES = (ENVIRONMENT_PREFIX, "oidc/")

#: Parameters whose value is a secret. A test checks that each suspicious name of LiteLLM's is here
#: or in NOT_SECRET.
SECRET = frozenset(
    {
        "access_token",
        "anthropic_identity_token",
        "api_key",
        "apikey",
        "arize_api_key",
        "arize_space_key",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "aws_web_identity_token",
        "azure_ad_token",
        "azure_password",
        "client_secret",
        "dd_api_key",
        "gemini_api_key",
        "gigachat_access_token",
        "humanloop_api_key",
        "langfuse_secret",
        "langfuse_secret_key",
        "langsmith_api_key",
        "newrelic_api_key",
        "oci_key",
        "posthog_api_key",
        "s3_access_key_id",
        "s3_secret_access_key",
        "signoz_ingestion_key",
        "token",
        "valkey_password",
        "vertex_ai_credentials",
        "vertex_credentials",
        "wandb_api_key",
        "watsonx_credentials",
        "wx_credentials",
        "zen_api_key",
    }
)
#: Secrets that may also be the path of a file: LiteLLM opens it.
SECRET_OR_PATH = frozenset(
    {"vertex_credentials", "vertex_ai_credentials", "aws_web_identity_token"}
)
#: What makes the name of a parameter, a header or an environment variable suspicious.
SUSPICIOUS = re.compile(
    r"(?i)(^|[_-])(api)?-?(key|keys|apikey|secret|token|password|passwd|credentials?|authorization"
    r"|auth|cookie)([_-]|$)"
)
#: Suspicious names that hold no secret.
NOT_SECRET = frozenset(
    {
        "anthropic_keycloak_auth_method",
        "anthropic_identity_token_file",
        "anthropic_issuer_signing_key_ref",
        "anthropic_keycloak_client_secret_ref",
        "anthropic_keycloak_token_url",
        "azure_ad_token_provider",
        "bos_token",
        "cache_key",
        "chatgpt_auth_file",
        "completion_bias_exclusion_first_token_only",
        "completion_bias_inclusion_first_token_only",
        "configurable_clientside_auth_params",
        "continuation_token",
        "default_api_key_rpm_limit",
        "default_api_key_tpm_limit",
        "entra_token_minter",
        "eos_token",
        "gdc_token_caching",
        "gigachat_auth_url",
        "github_copilot_auth_type",
        "langfuse_public_key",
        "litellm_credential_name",
        "mint_access_token",
        "oci_key_file",
        "openai_identity_token_file",
        "page_token",
        "preset_cache_key",
        "prompt_cache_key",
        "resolve_access_token",
        "s3_encryption_key_id",
        "secret_fields",
        "token_exchange_audience",
        "token_exchange_endpoint",
        "token_exchange_profile",
        "token_exchange_scope",
        "user_api_key_end_user_id",
    }
)
#: Parameters that have no meaning in the fleet: they are for the users of LiteLLM's proxy.
PROXY_ONLY = frozenset(
    {
        "allow_client_keepalive_override",
        "budget_duration",
        "configurable_clientside_auth_params",
        "default_api_key_rpm_limit",
        "default_api_key_tpm_limit",
        "keepalive_seconds",
        "max_budget",
        "max_file_size_mb",
        "tag_regex",
        "use_in_pass_through",
    }
)
#: Parameters that each request brings, or that another key of fleet.yaml sets.
SET_ELSEWHERE = {
    "model": "write the deployment's provider and upstream, or litellm_params.model without them",
    "model_info": "write it beside litellm_params",
    "messages": "each request brings its own",
    "input": "each request brings its own",
    "stream": "each request says so itself",
    "metadata": "the fleet sets it for each call",
}
#: A price for one kind of token or request. LiteLLM's name of each has this in it.
_PRICE = re.compile(r"(^|_)cost(_|$)")
_PASSWORD_IN_URL = re.compile(r"\w+://[^/@]*:[^/@]+@")

NameKind = Literal[
    "providers",
    "litellm_params",
    "account_params",
    "retry_policy",
    "allowed_fails_policy",
    "optional_pre_call_checks",
    "router_settings",
    "litellm_settings",
    "general_settings",
    "sections",
]


@cache
def known_names(kind: NameKind) -> frozenset[str]:
    """Return the names that LiteLLM gives to things of a kind."""
    names: dict[str, list[str]] = json.loads(NAMES_FILE.read_text())
    return frozenset(names[kind])


def is_price(name: str) -> bool:
    """Return whether a parameter is a price: fleet.yaml has those under `price`."""
    return _PRICE.search(name) is not None


def did_you_mean(name: str, kind: NameKind) -> str:
    """Return a hint with the nearest name that LiteLLM knows; "" if none is near."""
    near = difflib.get_close_matches(name.lower(), known_names(kind), n=1, cutoff=0.75)
    return f"did you mean {near[0]}? " if near else ""


def is_secret(name: str) -> bool:
    """Return whether the value of a parameter, a header or a variable is a secret, by its name."""
    if name in SECRET:
        return True
    return bool(SUSPICIOUS.search(name)) and name not in NOT_SECRET and not is_price(name)


def literal_secrets(values: Any, name: str = "", path: str = "") -> Iterator[str]:
    """Yield the path of each secret that is written out instead of named, at any depth."""
    if isinstance(values, dict):
        if name in SECRET:
            yield path
            return
        for key, value in values.items():
            yield from literal_secrets(value, str(key), f"{path}.{key}".lstrip("."))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from literal_secrets(value, name, f"{path}.{index}")
    elif _is_literal_secret(name, values):
        yield path


def _is_literal_secret(name: str, value: object) -> bool:
    if not isinstance(value, str):
        return name in SECRET and type(value) in (int, float)  # digits without quotes
    if not value or value.startswith(REFERENCE_PREFIXES):
        return False
    if name in SECRET_OR_PATH:
        return value.lstrip().startswith("{")
    return is_secret(name) or _PASSWORD_IN_URL.match(value) is not None


def secret_references(values: Any) -> Iterator[str]:
    """Yield the name of each environment variable that a secret refers to, at any depth."""
    for name, value in _leaves(values):
        if isinstance(value, str) and value.startswith(ENVIRONMENT_PREFIX) and is_secret(name):
            yield value.removeprefix(ENVIRONMENT_PREFIX)


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _leaves(value, name)
    else:
        yield name, values


def resolve(values: Any) -> Any:
    """Return values with the environment's in place of each `os.environ/NAME`, at any depth.

    Raises:
        ConfigError: A variable is not set; the error names it.
    """
    if isinstance(values, dict):
        # LiteLLM reads `..._ref` itself: it refers to a secret that is fetched for each token.
        return {
            key: value if str(key).endswith("_ref") else resolve(value)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [resolve(value) for value in values]
    if isinstance(values, str) and values.startswith(ENVIRONMENT_PREFIX):
        return environment(values.removeprefix(ENVIRONMENT_PREFIX))
    return values


def environment(name: str, meaning: str = "its value") -> str:
    """Return an environment variable.

    Raises:
        ConfigError: It is not set, or empty.
    """
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"{name} is not set: set it to {meaning}")
    return value


def secret_values(values: Any) -> Iterator[str]:
    """Yield each secret in values, as it may stand in a message.

    A variable that a value refers to is read; a variable that is not set has no secret.
    """
    for name, written in _leaves(values):
        value = written
        if isinstance(written, str) and written.startswith(ENVIRONMENT_PREFIX):
            value = os.environ.get(written.removeprefix(ENVIRONMENT_PREFIX))
        if isinstance(value, str) and value and (is_secret(name) or _PASSWORD_IN_URL.match(value)):
            yield value


def ambient_secrets() -> Iterator[str]:
    """Yield the secrets that LiteLLM may take from the environment by itself, by their names."""
    for name, value in os.environ.items():
        if len(value) >= MIN_AMBIENT_LENGTH and SUSPICIOUS.search(name):
            yield value


#: Shorter values of the environment are words or flags rather than secrets.
MIN_AMBIENT_LENGTH = 8

#: A tag. LiteLLM reads `!` and `&` before a tag as "not" and "and".
Tag = Annotated[str, Field(pattern="^[^!&]")]


class AccountParams(Section):
    """LiteLLM's parameters, with LiteLLM's names.

    Any other parameter of LiteLLM may stand here: `api_base`, `api_version`, `aws_region_name`,
    `vertex_project`, `drop_params`, `extra_headers`... Unknown names are errors. A secret is
    written as `os.environ/NAME`; so may every other value be.
    """

    model_config = ConfigDict(extra="allow")

    #: Seconds for one attempt.
    timeout: float | None = None
    #: Seconds until the first token of a streamed attempt.
    stream_timeout: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in data.keys() - cls.model_fields.keys():
            _check_name(str(name))
        if misplaced := DEPLOYMENT_PARAMS & data.keys() - cls.model_fields.keys():
            raise ValueError(f"{', '.join(sorted(misplaced))}: write it in each deployment")
        typed = {name: resolve(data[name]) for name in data.keys() & cls.model_fields.keys()}
        texts = {name: _text(data[name]) for name in data.keys() & known_names("account_params")}
        return {**data, **texts, **typed}

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        refuse_literal_secrets(self.values())
        return self

    def values(self) -> Values:
        """Return the parameters that are set, as they are written."""
        return self.model_dump(exclude_none=True)


class LitellmParams(AccountParams):
    """LiteLLM's parameters of one deployment, with LiteLLM's names.

    Any other parameter of LiteLLM may stand here too, as in the account's, which these override.
    """

    #: Relative share of the model's requests under `simple-shuffle`.
    weight: int | None = None
    #: Requests per minute that the deployment accepts.
    rpm: int | None = None
    #: Tokens per minute that the deployment accepts.
    tpm: int | None = None
    #: Deployments with the lowest order are tried first.
    order: int | None = None
    #: Requests with tags go only to deployments that have all of them.
    tags: list[Tag] | None = None
    #: Requests that may run at the same time, in one worker process.
    max_parallel_requests: int | None = None


#: Parameters that have no meaning for an account as a whole.
DEPLOYMENT_PARAMS = LitellmParams.model_fields.keys() - AccountParams.model_fields.keys()


def _text(value: Any) -> Any:
    """A number or a date as the text that LiteLLM needs: `api_version: 2024-10-21`."""
    return str(value) if type(value) in (int, float, datetime.date) else value


def _check_name(name: str) -> None:
    if name in SET_ELSEWHERE:
        raise ValueError(f"{name}: {SET_ELSEWHERE[name]}")
    if is_price(name):
        raise ValueError(f"{name}: write it under price, in dollars per million tokens")
    if name in PROXY_ONLY:
        raise ValueError(f"{name}: has no meaning here, only for LiteLLM's proxy; remove it")
    if name not in known_names("litellm_params"):
        raise ValueError(
            f"{name}: unknown to LiteLLM; {did_you_mean(name, 'litellm_params')}"
            "A field of the provider's own API belongs under extra_body"
        )


def refuse_literal_secrets(values: Any) -> None:
    """Raise ValueError, without the value, if a secret is written out."""
    if paths := list(literal_secrets(values)):
        raise ValueError(secret_message(paths))


def secret_message(paths: Iterable[str]) -> str:
    """Return what to do about secrets that are written out."""
    places = ", ".join(filter(None, paths))
    return (
        f"{places}{': ' if places else ''}a secret; write {ENVIRONMENT_PREFIX}NAME and set the "
        "variable NAME: this file must not hold keys"
    )

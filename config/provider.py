"""Providers and the models they serve: the `providers` and `deployments` sections of fleet.yaml."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from config.key_variables import environment_key, missing_key
from config.litellm_params import (
    ENVIRONMENT_PREFIX,
    AccountParams,
    LitellmParams,
    did_you_mean,
    environment,
    known_names,
    refuse_literal_secrets,
    resolve,
)
from config.media_tokens import media_tokens
from config.price import Priced
from config.section import Name, Section, Values
from primarch_fleet.errors import ConfigError
from primarch_fleet.prompt_size import MediaTokens
from primarch_fleet.requests.base import JsonObject


def _require_environment_reference(value: str) -> str:
    if not value.startswith(ENVIRONMENT_PREFIX) or value == ENVIRONMENT_PREFIX:
        raise ValueError(
            f"write {ENVIRONMENT_PREFIX}NAME and set the variable NAME; "
            "this file must not hold keys"
        )
    return value


def _check_address(value: str) -> str:
    refuse_literal_secrets(value)
    return value


def _check_provider(name: str) -> str:
    if name == "auto_router":
        raise ValueError("auto_router: not supported; `routing` says how models are chosen")
    if name not in known_names("providers"):
        raise ValueError(
            f"unknown to LiteLLM: {name}; {did_you_mean(name, 'providers')}"
            "The names are at https://docs.litellm.ai/docs/providers"
        )
    return name


#: The name of an environment variable, as LiteLLM writes it: `os.environ/OPENAI_API_KEY`.
FromEnvironment = Annotated[str, AfterValidator(_require_environment_reference)]


class Provider(Section):
    """An account at a provider."""

    #: LiteLLM's name of the provider: openai, azure, anthropic, ... All lanes use this entry.
    litellm_provider: Annotated[str, AfterValidator(_check_provider)]
    #: The variable with the API key, as `os.environ/NAME`. Without it, LiteLLM authenticates by the
    #: account's other parameters, or by the provider's own variables: `AWS_...` for Bedrock.
    api_key: FromEnvironment | None = None
    #: Another base URL than the provider's own, or its variable, as `os.environ/NAME`. An unset
    #: variable means the provider's own.
    api_base: Annotated[str, AfterValidator(_check_address)] | None = None
    #: The account's other parameters, with LiteLLM's names: region, project, API version, headers.
    litellm_params: AccountParams = AccountParams()
    #: The variable with the secret that signs the provider's webhooks (`whsec_...`). Only
    #: `fleet webhook` reads it. Without it, that command rejects the provider's webhooks.
    webhook_secret: FromEnvironment | None = None
    #: No real model answers there. Every receipt says so.
    simulated: bool = False

    def params(self) -> Values:
        """Return LiteLLM's parameters of the account, with the environment's values in place.

        Raises:
            ConfigError: A variable that they refer to is not set; the error names it.
        """
        own = {"api_key": self._own_key(), "api_base": self._own_base_url()}
        return {
            **{name: value for name, value in own.items() if value},
            **resolve(self.litellm_params.values()),
        }

    def key(self) -> str:
        """Return the API key.

        Raises:
            ConfigError: The account has none, or its variable is not set.
        """
        key = self._own_key() or self._param("api_key") or environment_key(self.litellm_provider)
        if not key:
            raise ConfigError(
                f"api_key: missing; {self.litellm_provider} needs it: write "
                f"{ENVIRONMENT_PREFIX}NAME and set NAME to the provider's API key"
            )
        return str(key)

    def base_url(self) -> str | None:
        """Return the configured base URL; None for the provider's own.

        Raises:
            ConfigError: `litellm_params` refers to a variable that is not set.
        """
        return self._own_base_url() or self._param("api_base")

    def required_base_url(self) -> str:
        """Return the base URL of a provider that has no public one.

        Raises:
            ConfigError: `api_base` is missing, or its variable is not set.
        """
        base_url = self.base_url()
        if base_url:
            return base_url
        if self.api_base is None:
            raise ConfigError(
                f"api_base: missing; {self.litellm_provider} needs it: write your base URL, or "
                f"{ENVIRONMENT_PREFIX}NAME and set NAME to it"
            )
        name = self.api_base.removeprefix(ENVIRONMENT_PREFIX)
        raise ConfigError(f"{name} is not set: set it to the provider's base URL")

    def _param(self, name: str) -> str | None:
        value = resolve(self.litellm_params.values().get(name))
        return None if value is None else str(value)

    def _own_key(self) -> str | None:
        if self.api_key is None:
            return None
        return environment(self.api_key.removeprefix(ENVIRONMENT_PREFIX), "the provider's API key")

    def _own_base_url(self) -> str | None:
        if self.api_base is None or not self.api_base.startswith(ENVIRONMENT_PREFIX):
            return self.api_base
        return os.environ.get(self.api_base.removeprefix(ENVIRONMENT_PREFIX)) or None


class Deployment(Priced):
    """One account that serves one model, such as `gpt-4o` at OpenAI.

    Instead of `provider` and `upstream`, the parameters may have LiteLLM's `model`, as in a
    LiteLLM proxy's file: `litellm_params: {model: azure/my-gpt-4o, api_base: ..., api_key: ...}`.
    """

    #: Unique name of the deployment. It is in receipts, and cooldowns in Redis are stored by it.
    id: Name
    #: The name that producers use. Several deployments may serve one model.
    model: Name
    #: The key of the account in `providers`.
    provider: str
    #: The provider's name for the model.
    upstream: str
    #: Where the deployment is, such as `eu-west-1`; also its tag `region:eu-west-1`.
    region: str | None = None
    #: Most tokens of one choice of an answer, from the provider's documentation.
    max_output_tokens: int | None = Field(None, gt=0)
    #: Most tokens of a prompt, from the provider's documentation.
    context_length: int | None = Field(None, gt=0)
    #: Most tokens that a picture or a sound in a prompt counts as. Without it, what is known of the
    #: model by the name in `upstream` (config/media_tokens.py).
    media_tokens: MediaTokens | None = None
    #: The deployment also serves the batch lane, at the price of batches.
    batch: bool = False
    #: Prompt tokens that all of the account's batches of the model may hold together, which
    #: providers call the batch queue limit. Without it, the fleet learns of the limit only when
    #: the provider refuses a batch.
    batch_enqueued_token_limit: int | None = Field(None, gt=0)
    #: LiteLLM's parameters of the deployment, besides those of its account. `params` is another
    #: name of this key.
    litellm_params: LitellmParams = LitellmParams()
    #: LiteLLM's `model_info` of the deployment, such as `base_model`: what LiteLLM knows it by.
    model_info: JsonObject = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_params(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "params" not in data:
            return data
        if "litellm_params" in data:
            raise ValueError("params: another name of litellm_params; write only one of them")
        rest = {name: value for name, value in data.items() if name != "params"}
        return {**rest, "litellm_params": data["params"]}

    @field_validator("model_info")
    @classmethod
    def _check_base_model(cls, info: Values) -> Values:
        if not isinstance(info.get("base_model"), str | None):
            raise ValueError("base_model: write the name of a model")
        return info

    @property
    def tags(self) -> list[str]:
        """The deployment's tags: those of its parameters, and its region."""
        region = [] if self.region is None else [f"region:{self.region}"]
        return [*(self.litellm_params.tags or ()), *region]

    @property
    def media(self) -> MediaTokens:
        """What media in a prompt count as, at most: as configured, or as known of the model."""
        return self.media_tokens or media_tokens(self.upstream)


def call_params(provider: Provider, deployment: Deployment) -> Values:
    """Return LiteLLM's parameters of a deployment and its account, with the environment's values.

    Raises:
        ConfigError: A variable that they refer to is not set, or the provider needs a key; the
            error names it and the entry.
    """
    try:
        account = provider.params()
    except ConfigError as error:
        raise ConfigError(f"providers.{deployment.provider}: {error}") from None
    try:
        own = resolve(deployment.litellm_params.values())
    except ConfigError as error:
        raise ConfigError(f"deployments.{deployment.id}: {error}") from None
    params = {"model": f"{provider.litellm_provider}/{deployment.upstream}", **account, **own}
    base_url = params.get("api_base")
    if base_url is not None and not str(base_url).startswith(("https://", "http://")):
        place = deployment.id if "api_base" in own else deployment.provider
        section = "deployments" if "api_base" in own else "providers"
        raise ConfigError(
            f"{section}.{place}: api_base: write a URL that begins with https:// or http://"
        )
    if key := missing_key(provider.litellm_provider, params, deployment.kind):
        instead = "" if key == "api_key" else f", or set {key}"
        raise ConfigError(
            f"providers.{deployment.provider}: api_key: missing; write "
            f"{ENVIRONMENT_PREFIX}NAME{instead}"
        )
    return params

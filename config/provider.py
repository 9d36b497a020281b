"""Providers and the models they serve: the `providers` and `deployments` sections of fleet.yaml."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from config.media_tokens import media_tokens
from config.section import Priced, Section
from primarch_fleet.errors import ConfigError
from primarch_fleet.prompt_size import MediaTokens

ENVIRONMENT_PREFIX = "os.environ/"


def _require_environment_reference(value: str) -> str:
    if not value.startswith(ENVIRONMENT_PREFIX):
        raise ValueError(
            f"write {ENVIRONMENT_PREFIX}NAME and set the variable NAME; "
            "this file must not hold keys or addresses"
        )
    return value


#: The name of an environment variable, as LiteLLM writes it: `os.environ/OPENAI_API_KEY`.
FromEnvironment = Annotated[str, AfterValidator(_require_environment_reference)]
#: A tag. LiteLLM reads `!` and `&` before a tag as "not" and "and".
Tag = Annotated[str, Field(pattern="^[^!&]")]


class Provider(Section):
    """An account at a provider."""

    #: LiteLLM's name of the provider: openai, azure, anthropic, ... All lanes use this entry.
    litellm_provider: str
    #: The variable with the API key, as `os.environ/NAME`.
    api_key: FromEnvironment
    #: The variable with another base URL than the provider's own, as `os.environ/NAME`. An unset
    #: variable means the provider's own.
    api_base: FromEnvironment | None = None
    #: The variable with the secret that signs the provider's webhooks (`whsec_...`). Only
    #: `python -m scheduler webhook` reads it; without it, that rejects the provider's webhooks.
    webhook_secret: FromEnvironment | None = None
    #: No real model answers there. Every receipt says so.
    simulated: bool = False

    def key(self) -> str:
        """Return the API key.

        Raises:
            ConfigError: Its variable is not set.
        """
        name = self.api_key.removeprefix(ENVIRONMENT_PREFIX)
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigError(f"{name} is not set: set it to the provider's API key") from None

    def base_url(self) -> str | None:
        """Return the configured base URL; None for the provider's own."""
        if self.api_base is None:
            return None
        return os.environ.get(self.api_base.removeprefix(ENVIRONMENT_PREFIX))

    def required_base_url(self) -> str:
        """Return the base URL of a provider that has no public one.

        Raises:
            ConfigError: `api_base` is missing, or its variable is not set.
        """
        if self.api_base is None:
            raise ConfigError(
                f"api_base: missing; {self.litellm_provider} needs it: write "
                f"{ENVIRONMENT_PREFIX}NAME and set NAME to your base URL"
            )
        base_url = self.base_url()
        if not base_url:
            name = self.api_base.removeprefix(ENVIRONMENT_PREFIX)
            raise ConfigError(f"{name} is not set: set it to the provider's base URL")
        return base_url


class RoutingParams(Section):
    """LiteLLM's parameters of one deployment, with LiteLLM's names."""

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
    #: Seconds for one attempt.
    timeout: float | None = None


class Deployment(Priced):
    """One account that serves one model, such as `gpt-4o` at OpenAI."""

    #: Unique name of the deployment. It is in receipts, and cooldowns in Redis are stored by it.
    id: str
    #: The name that producers use. Several deployments may serve one model.
    model: str
    #: The key of the account in `providers`.
    provider: str
    #: The provider's name for the model.
    upstream: str
    #: Most tokens of one choice of an answer, from the provider's documentation.
    max_output_tokens: int | None = Field(None, gt=0)
    #: Most tokens of a prompt, from the provider's documentation.
    context_length: int | None = Field(None, gt=0)
    #: Most tokens that a picture or a sound in a prompt counts as. Without it, what is known of the
    #: model by the name in `upstream` (config/media_tokens.py).
    media_tokens: MediaTokens | None = None
    #: The deployment also serves the batch lane, at the batch discount.
    batch: bool = False
    #: Prompt tokens that all of the account's batches of the model may hold together, which
    #: providers call the batch queue limit. Without it, the fleet learns of the limit only when
    #: the provider refuses a batch.
    batch_enqueued_token_limit: int | None = Field(None, gt=0)
    #: LiteLLM's parameters of the deployment.
    params: RoutingParams = RoutingParams()

    @property
    def media(self) -> MediaTokens:
        """What media in a prompt count as, at most: as configured, or as known of the model."""
        return self.media_tokens or media_tokens(self.upstream)

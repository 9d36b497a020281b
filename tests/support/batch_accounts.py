"""Accounts of providers, as the configuration has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from config.provider import Provider as Entry
from scheduler.providers import PROVIDERS
from tests.support.batch_fixture import Dialect
from workers.onebox.simulator.anthropic import AnthropicApp
from workers.onebox.simulator.app import App
from workers.onebox.simulator.azure import AzureApp
from workers.onebox.simulator.gemini import GeminiApp
from workers.onebox.simulator.provider import Provider

KEY = "sk-of-the-test"


CLASSIC = "2024-10-21"


def entry(kind: str) -> dict[str, str]:
    return {
        "litellm_provider": kind,
        "api_key": "os.environ/TEST_KEY",
        "api_base": "os.environ/TEST_BASE",
    }


def account(kind: str, version: str, url: str) -> Any:
    """An account as the configuration gives it."""
    paths = {"azure": "", "anthropic": "", "gemini": "/v1beta"}
    address = url.removesuffix("/v1") + paths.get(kind, "/v1")
    os.environ |= {"TEST_KEY": KEY, "TEST_BASE": address, "AZURE_API_VERSION": version}
    return PROVIDERS[kind].from_config(Entry.model_validate(entry(kind)))


def dialect(kind: str, version: str = "", **azure: Any) -> Dialect:
    """A provider of a kind, and what its class makes of an entry for it."""
    apps: dict[str, Callable[[Provider], App]] = {
        "azure": partial(AzureApp, **azure),
        "anthropic": AnthropicApp,
        "gemini": GeminiApp,
    }
    return Dialect(apps.get(kind, App), partial(account, kind, version), kind)

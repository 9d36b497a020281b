"""LiteLLM without the network, in front of a provider that answers every call."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

from tests.support.provider_stub import ProviderStub, provider_stub


@pytest.fixture(name="stub", scope="module")
def local_stub() -> Iterator[ProviderStub]:
    """The provider. LiteLLM reaches nothing else, and keeps no connection afterwards."""
    resolve = socket.getaddrinfo

    def local_only(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            raise OSError(f"{host} is not on this machine")
        return resolve(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch, provider_stub() as stub:
        patch.setattr(socket, "getaddrinfo", local_only)
        patch.setattr(litellm, "suppress_debug_info", True)
        yield stub
    # Tests of other files would fail for what LiteLLM leaves open.
    clients: Any = litellm.in_memory_llm_clients_cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        clients.flush_cache()
        asyncio.set_event_loop(None)
        gc.collect()

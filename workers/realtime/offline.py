"""Keeps a thread off the network while it asks LiteLLM what it would send.

LiteLLM stops before it sends a request for most providers only: Ollama's embeddings it sends.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

#: What Python says before it looks up a name or connects.
NETWORK_EVENTS = {"socket.getaddrinfo", "socket.connect", "socket.sendto", "socket.sendmsg"}

_thread = local()


@contextmanager
def offline() -> Iterator[None]:
    """Make connections that this thread opens fail with an OSError."""
    _thread.is_offline = True
    try:
        yield
    finally:
        _thread.is_offline = False


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event in NETWORK_EVENTS and getattr(_thread, "is_offline", False):
        raise ConnectionRefusedError("LiteLLM is only asked what it would send")


sys.addaudithook(_refuse)

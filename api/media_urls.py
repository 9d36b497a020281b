"""URLs of pictures and files in prompts: providers and engines fetch them, from their own networks.

An engine is in the operator's network, and LiteLLM downloads pictures for providers that take none
by URL. So a URL must not lead to a private address. LiteLLM checks the address that it connects to
once more; this check tells the caller at once, and holds for engines too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from api.errors import NO_RETRY, ApiError

#: Keys of OpenAI's content parts whose text is a URL.
_URL_KEYS = frozenset({"url", "image_url", "file_url", "audio_url", "video_url"})
#: Seconds for a host name to be resolved; the providers' own networks may know names that ours do
#: not, so a name that is not found is let through.
_RESOLVE_SECONDS = 2.0
#: Addresses within a cloud that count as public: Azure's wire server.
_CLOUD_ADDRESSES = frozenset({"168.63.129.16"})


async def check_media_urls(body: dict[str, Any]) -> None:
    """Refuse a prompt with a URL that is neither a public http(s) address nor a data URL.

    Raises:
        ApiError: Status 400; the message names the host.
    """
    await check_hosts(media_hosts(body))


def media_hosts(body: dict[str, Any]) -> set[str]:
    """Return the hosts of a prompt's URLs.

    Raises:
        ApiError: Status 400: a URL is neither http(s) nor a data URL.
    """
    urls = (url for name in ("messages", "input") for url in _urls(body.get(name)))
    return {host for url in urls if (host := _host(url)) is not None}


async def check_hosts(hosts: set[str]) -> None:
    """Refuse hosts without a public address.

    Raises:
        ApiError: Status 400; the message names the host.
    """
    for host in hosts:
        if not await _is_public(host):
            raise _refused(f"the URL's host {host[:100]!r} is no public address")


def _urls(value: Any) -> Iterator[str]:
    """The URLs of all content parts below a value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += [part for part in one if isinstance(part, dict | list)]
        elif isinstance(one, dict):
            yield from (url for key, url in one.items() if key in _URL_KEYS and _is_text(url))
            waiting += [part for part in one.values() if isinstance(part, dict | list)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _host(url: str) -> str | None:
    """The host of a URL; None of a data URL. Raises ApiError for other schemes."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme == "data":
            return None
        if parts.scheme in ("http", "https") and parts.hostname:
            return parts.hostname
    except ValueError:
        pass
    raise _refused("a URL in the prompt must start with https://, http:// or data:")


async def _is_public(host: str) -> bool:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (TimeoutError, OSError, UnicodeError):
        return not _is_local_name(host)
    return all(_is_public_address(str(one[4][0])) for one in found)


def _is_local_name(host: str) -> bool:
    return "." not in host or host.rstrip(".").endswith((".localhost", ".local", ".internal"))


def _is_public_address(text: str) -> bool:
    if text in _CLOUD_ADDRESSES:
        return False
    with suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_global
    return False


def _refused(message: str) -> ApiError:
    return ApiError(400, "invalid_url", message, headers=NO_RETRY)

"""What requests carry to providers and engines: the `requests` section of fleet.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from config.section import Section

#: Headers that authenticate a call, name an account, or belong to the transport.
RESERVED_HEADER = re.compile(
    r"authorization|cookie|api-?key|token|secret|signature|^x-amz-|^openai-(organization|project)$"
    r"|^host$|^content-|^transfer-encoding$|^connection$|^forwarded$|^x-forwarded-|^user-agent$"
)


def _check_header(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+", name.lower()):
        raise ValueError("write a header's name, such as anthropic-beta")
    if RESERVED_HEADER.search(name.lower()):
        raise ValueError(
            "requests must not set it: credentials and accounts are in providers, and the rest "
            "belongs to the connection"
        )
    return name.lower()


HeaderName = Annotated[str, AfterValidator(_check_header)]


class RequestPolicy(Section):
    """What requests carry to providers and engines."""

    #: What a provider learns of `user_id`, where it has a field for end users: `hashed`: a keyed
    #: hash of tenant and user; `plain`: the id itself; `omitted`: nothing.
    user_id: Literal["hashed", "plain", "omitted"] = "hashed"
    #: Names of headers that a request may set for its provider (`extra_headers`), on the realtime
    #: lane.
    extra_headers: tuple[HeaderName, ...] = ()
    #: Tenants share the prefix caches of engines and of vLLM servers. By sharing, a tenant can
    #: measure whether another has sent the same prompt. False: each tenant has its own, by a
    #: `cache_salt`. A fleet with one tenant loses nothing by that.
    share_prefix_cache: bool = False

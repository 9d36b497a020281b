"""The URL of the fleet's Redis, in one spelling that redis-py, kombu, Celery and LiteLLM all take.

`rediss://host/0` alone means TLS with a verified certificate and host name in every client. The
libraries disagree about that URL: kombu does not verify, Celery raises ValueError, a transport of
our own would use plain TCP, and redis-py before 6.0 does not compare the host name. They agree once
`ssl_cert_reqs=required` and `ssl_check_hostname=true` are written out, which `normalized` does.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from primarch_fleet.errors import ConfigError

logger = logging.getLogger(__name__)

#: Schemes of URLs -> what the libraries call them. Valkey's names are those of its own clients.
_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
#: Spellings of a value, in lower case -> redis-py's, which kombu and Celery take as well. Celery
#: asks for the first in each line. In a client, OPTIONAL verifies like REQUIRED:
#: https://docs.python.org/3/library/ssl.html#ssl.CERT_OPTIONAL
_CERT_REQS = {
    **dict.fromkeys(("cert_required", "required", "cert_optional", "optional"), "required"),
    **dict.fromkeys(("cert_none", "none"), "none"),
}
_FLAGS = {"true": "true", "1": "true", "yes": "true"} | dict.fromkeys(("false", "0", "no"), "false")
#: Options whose values are spelled in several ways.
_SPELLINGS = {"ssl_cert_reqs": _CERT_REQS, "ssl_check_hostname": _FLAGS}
#: Options whose values are files in PEM format.
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
#: What to use where several servers are, for errors.
FOLLOW_THE_PRIMARY = (
    "If several servers replicate, use one address that follows the primary: a virtual IP, or a "
    "TCP proxy such as HAProxy with a check for role:master"
)
#: Why no other broker can be used, such as RabbitMQ or SQS.
_REDIS_ONLY = (
    "The broker is Redis or Valkey: one step there stores a request, what it reserves and its "
    "idempotency key, and no other broker has such a step; see docs/design/broker.md"
)
#: Schemes of Redis's own that are refused -> why.
_REFUSED_SCHEMES = {
    **dict.fromkeys(
        ("unix", "socket", "redis+socket", "rediss+socket", "redis+unix", "valkey+unix"),
        "Unix sockets are not supported",
    ),
    **dict.fromkeys(
        ("sentinel", "redis+sentinel", "rediss+sentinel", "redis-sentinel", "valkey+sentinel"),
        f"Sentinel is not supported. {FOLLOW_THE_PRIMARY}",
    ),
    **dict.fromkeys(
        ("cluster", "redis+cluster", "rediss+cluster", "redis-cluster", "valkey+cluster"),
        f"Redis Cluster is not supported. {FOLLOW_THE_PRIMARY}",
    ),
}
#: Where a database may be written, besides the path: redis-py's and kombu's names.
_DATABASES = ("db", "virtual_host")


@cache
def normalized(url: str) -> str:
    """Return a URL that means the same in every library, with TLS verified.

    Args:
        url: `redis://` or, for TLS, `rediss://`; `valkey://` and `valkeys://` mean the same. User
            and password are percent-encoded. Options: `ssl_ca_certs`, a file with certificates of
            authorities to trust besides the system's; `ssl_certfile` and `ssl_keyfile`, of the
            client; `ssl_cert_reqs=none` and `ssl_check_hostname=false` verify less, with a warning.

    Returns:
        The URL; a normalized URL is returned as it is.

    Raises:
        ConfigError: The URL is wrong. The message has no part of it, because of the password.
    """
    scheme, parts = _scheme(url), _split(url)
    options = _options(parts)
    database = _database(parts, options)
    tls = _tls_options(scheme, options)
    query = f"?{urlencode(tls, quote_via=quote)}" if tls else ""
    return f"{scheme}://{_authority(parts)}/{database}{query}"


def tls_options(url: str) -> dict[str, Any] | None:
    """Return the TLS options of a URL as Celery's `broker_use_ssl` takes them; None without TLS.

    The URL itself has them for Celery and kombu. Flower reads the setting only.
    """
    parts = urlsplit(normalized(url))
    if parts.scheme == "redis":
        return None
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    options["ssl_cert_reqs"] = (
        ssl.CERT_NONE if options["ssl_cert_reqs"] == "none" else ssl.CERT_REQUIRED
    )
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
    return options


def masked(url: str) -> str:
    """Return the URL without its password and options, to print it."""
    parts = urlsplit(normalized(url))
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    login = f"{name}:***@" if password else f"{name}@" if name else ""
    return f"{parts.scheme}://{login}{host}{parts.path}"


def passwords(url: str) -> set[str]:
    """Return the password of a URL, as it is and as the URL spells it; empty without one."""
    password = urlsplit(url).password or ""
    return {password, unquote(password)} - {""}


def _scheme(url: str) -> str:
    """Return what the libraries call the scheme. URLs of other schemes may have other forms."""
    name = url.strip().partition("://")[0].lower()
    if name not in _SCHEMES:
        reason = _REFUSED_SCHEMES.get(name, _REDIS_ONLY)
        raise ConfigError(f"the URL must begin with redis:// or, for TLS, rediss://. {reason}")
    return _SCHEMES[name]


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.port != 0 and not parts.fragment
    except ValueError:  # its message has a part of the password
        valid = False
    if not valid:
        raise ConfigError(
            "the URL cannot be read; percent-encode special characters of the password, "
            "such as %23 for #"
        )
    return parts


def _authority(parts: SplitResult) -> str:
    """User, password, host and port, encoded so that no library misreads a special character."""
    host = parts.hostname or "localhost"
    address = f"[{host}]" if ":" in host else host
    if parts.port:
        address += f":{parts.port}"
    user, password = (
        quote(unquote(part or ""), safe="") for part in (parts.username, parts.password)
    )
    login = f"{user}:{password}" if password else user
    return f"{login}@{address}" if login else address


def _options(parts: SplitResult) -> dict[str, str]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):  # redis-py takes the first value, kombu the last
        raise ConfigError("the URL has an option twice; keep one of them")
    return options


def _database(parts: SplitResult, options: dict[str, str]) -> int:
    """Take the number of the database from the path or the options."""
    numbers = {options.pop(name) for name in _DATABASES if name in options}
    if path := parts.path.strip("/"):
        numbers.add(path)
    if len(numbers) > 1 or not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            "after the host, the URL must have the number of one database, as in redis://host/0. "
            + FOLLOW_THE_PRIMARY
        )
    return int(next(iter(numbers), "0"))


def _tls_options(scheme: str, options: dict[str, str]) -> dict[str, str]:
    """Check the options; return those of TLS in redis-py's spelling."""
    names = (*_FILES, *_SPELLINGS)
    if not options.keys() <= set(names):
        raise ConfigError(f"the URL has an unknown option; the options are {', '.join(names)}")
    if scheme == "redis":
        if options:
            raise ConfigError("the URL has options of TLS: it must begin with rediss://")
        return {}
    tls = {"ssl_cert_reqs": "required"}
    for name, value in options.items():
        if name in _FILES:
            tls[name] = _file(name, value)
        elif value.lower() in _SPELLINGS[name]:
            tls[name] = _SPELLINGS[name][value.lower()]
        else:
            raise ConfigError(f"{name} must be one of {', '.join(_SPELLINGS[name])}")
    if tls["ssl_cert_reqs"] == "required":  # else there is no host name to compare
        tls.setdefault("ssl_check_hostname", "true")
    _check_certificates(tls)
    if "none" in tls.values() or "false" in tls.values():
        _warn_unverified()
    return tls


def _file(name: str, value: str) -> str:
    path = Path(value).absolute()
    if not path.is_file():
        raise ConfigError(f"{name}: no such file: {path}")
    if "%" in str(path):  # Celery decodes the path twice
        raise ConfigError(f"{name}: the path must not contain %: {path}")
    return str(path)


def _check_certificates(options: Mapping[str, str]) -> None:
    """Load the files as the clients will. Raises ConfigError."""
    authorities, certificate, key = (options.get(name) for name in _FILES)
    if key and not certificate:
        raise ConfigError("ssl_keyfile: ssl_certfile is needed too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name = "ssl_ca_certs"
    try:
        if authorities:
            context.load_verify_locations(authorities)
        name = "ssl_certfile"
        if certificate:
            # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise ConfigError(
            f"{name}: not a readable file in PEM format, with an unencrypted key: {error}"
        ) from None


@cache
def _warn_unverified() -> None:
    logger.warning(
        "The certificate of Redis is not verified, as its URL says: any server that answers at its "
        "address gets the password and every prompt",
        extra={"action": "redis_tls_unverified"},
    )

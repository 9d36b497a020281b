"""The URL of Redis: what each library makes of a normalized URL, and what is refused."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery
from celery.app.utils import sanitize_url  # type: ignore[attr-defined]
from kombu import Connection

import workers.runtime.fetching.transport  # noqa: F401 - registers URL schemes
from config.settings import Settings
from primarch_fleet import Fleet
from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_url import _warn_unverified, masked, normalized, tls_options
from scheduler.completion import publish_once  # noqa: F401 - registers URL schemes
from tests.support.certificates import Authority

PASSWORD = "p:@/?#%;+ &\u00fc"
ENCODED = "p%3A%40%2F%3F%23%25%3B%2B%20%26%C3%BC"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def kombu_parameters(url: str, scheme: str) -> dict[str, Any]:
    with Connection(f"{scheme}{url}") as connection:
        transport: Any = connection.transport
        # Without a channel's own start, which connects.
        channel = type("Channel", (transport.Channel,), {"__init__": lambda self: None})()
        channel.connection = transport
        return dict(channel._connparams())


def celery_parameters(url: str) -> dict[str, Any]:
    with Celery(set_as_current=False, backend=url) as app:
        backend: Any = app.backend
        return dict(backend.connparams)


def parameters(url: str) -> dict[str, dict[str, Any]]:
    """What each library connects with."""
    return {
        "redis-py": redis.ConnectionPool.from_url(url).connection_kwargs
        | {"connection_class": redis.ConnectionPool.from_url(url).connection_class},
        "redis-py asyncio": redis.asyncio.ConnectionPool.from_url(url).connection_kwargs
        | {"connection_class": redis.asyncio.ConnectionPool.from_url(url).connection_class},
        "Celery": celery_parameters(url),
        **{f"kombu {own}": kombu_parameters(url, own) for own in ("", "fleet", "once")},
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", "redis://host/0"),
        ("redis://host/", "redis://host/0"),
        ("redis://", "redis://localhost/0"),
        ("redis://:6380/1", "redis://localhost:6380/1"),
        ("redis://host:6380/3", "redis://host:6380/3"),
        ("redis://host?db=3", "redis://host/3"),
        ("redis://host?virtual_host=3", "redis://host/3"),
        ("valkey://host/0", "redis://host/0"),
        ("REDIS://Host/0", "redis://host/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("redis://:secret@host/0", "redis://:secret@host/0"),
        ("redis://user:a@b@host/0", "redis://user:a%40b@host/0"),
        (f"redis://user:{ENCODED}@host/0", f"redis://user:{ENCODED}@host/0"),
        ("rediss://host/0", "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true"),
        ("valkeys://host/0", "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true"),
        (
            "rediss://host/0?ssl_cert_reqs=CERT_REQUIRED",
            "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
        (
            "rediss://host/0?ssl_cert_reqs=required",
            "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
        (
            "rediss://host/0?ssl_cert_reqs=optional",
            "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE", "rediss://host/0?ssl_cert_reqs=none"),
        ("rediss://host/0?ssl_cert_reqs=none", "rediss://host/0?ssl_cert_reqs=none"),
        ("rediss://host/0?ssl_cert_reqs=None", "rediss://host/0?ssl_cert_reqs=none"),
        (
            "rediss://host/0?ssl_check_hostname=False",
            "rediss://host/0?ssl_cert_reqs=required&ssl_check_hostname=false",
        ),
    ],
)
def test_a_url_gets_the_one_spelling_that_all_libraries_take(url: str, expected: str) -> None:
    assert normalized(url) == expected
    assert normalized(expected) == expected


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_every_library_reads_the_same_from_a_url(scheme: str) -> None:
    url = normalized(f"{scheme}://us%40er:{ENCODED}@[::1]:6380/3")
    for library, read in parameters(url).items():
        found = {name: read[name] for name in ("host", "port", "username", "password", "db")}
        assert found == {
            "host": "::1",
            "port": 6380,
            "username": "us@er",
            "password": PASSWORD,
            "db": 3,
        }, library
        connection = read.get("connection_class", redis.Connection)
        tls = issubclass(connection, redis.SSLConnection | redis.asyncio.SSLConnection)
        assert tls == (scheme == "rediss"), library


def test_every_library_verifies_with_a_bare_tls_url() -> None:
    for library, read in parameters(normalized("rediss://host/0")).items():
        options = {name: value for name, value in read.items() if name.startswith("ssl_")}
        assert options["ssl_cert_reqs"] in ("required", ssl.CERT_REQUIRED), library
        context = read["connection_class"](**options)
        assert context.check_hostname, library


def test_every_library_gets_the_certificates_of_a_url(authority: Authority) -> None:
    client = authority.issue("client")
    files = {
        "ssl_ca_certs": str(authority.file),
        "ssl_certfile": str(client.certificate),
        "ssl_keyfile": str(client.key),
    }
    url = "rediss://host/0?" + "&".join(f"{name}={file}" for name, file in files.items())
    for library, read in parameters(normalized(url)).items():
        assert {name: read[name] for name in files} == files, library
    checked = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    assert tls_options(url) == files | checked


def test_a_relative_file_stays_the_same_file_in_another_folder(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(authority.file.parent)
    url = normalized(f"rediss://host/0?ssl_ca_certs={authority.file.name}")
    options = tls_options(url)
    assert options is not None
    assert options["ssl_ca_certs"] == str(authority.file)


def test_only_tls_has_options() -> None:
    assert tls_options("redis://host/0") is None
    assert tls_options("rediss://host/0?ssl_check_hostname=0&ssl_cert_reqs=CERT_NONE") == {
        "ssl_cert_reqs": ssl.CERT_NONE,
        "ssl_check_hostname": False,
    }


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_a_certificate_is_ignored_only_with_one_warning(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_unverified.cache_clear()
    caplog.set_level(logging.WARNING)
    for database in range(3):
        normalized(normalized(f"rediss://:hunter2@host-{option}/{database}?{option}"))
    assert [record.action for record in caplog.records] == ["redis_tls_unverified"]  # type: ignore[attr-defined]
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("unix:///tmp/redis.sock", "must begin with redis://"),
        ("redis+socket:///tmp/redis.sock", "must begin with redis://"),
        ("sentinel://host", "must begin with redis://"),
        ("http://hunter2@host", "must begin with redis://"),
        ("hunter2@host:6379", "must begin with redis://"),
        ("redis://:hunter2/x@host/0", "percent-encode"),
        ("redis://:hunter2#x@host/0", "percent-encode"),
        ("redis://:hunter2?x@host/0", "percent-encode"),
        ("redis://:hunter2[x@host/0", "percent-encode"),
        ("redis://:hunter2\u2100@host/0", "percent-encode"),
        ("redis://:hunter2@host:port/0", "percent-encode"),
        ("redis://:hunter2@host:99999/0", "percent-encode"),
        ("redis://:hunter2@host:0/0", "percent-encode"),
        ("redis://:hunter2@host/name", "number of one database"),
        ("redis://:hunter2@host/1?db=2", "number of one database"),
        ("redis://:hunter2@host/0;redis://:hunter2@other/0", "number of one database"),
        ("redis://:hunter2@host/0?hunter2=1", "unknown option"),
        ("redis://:hunter2@host/0?ssl_cert_reqs=required", "must begin with rediss://"),
        ("rediss://:hunter2@host/0?ssl_cert_reqs=hunter2", "ssl_cert_reqs must be one of"),
        ("rediss://:hunter2@host/0?ssl_cert_reqs=required&ssl_cert_reqs=none", "an option twice"),
        ("rediss://:hunter2@host/0?ssl_cert_reqs=", "ssl_cert_reqs must be one of"),
        ("rediss://:hunter2@host/0?ssl_ca_certs=/no/such.pem", "ssl_ca_certs: no such file"),
        ("rediss://:hunter2@host/0?ssl_ca_certs=" + __file__, "ssl_ca_certs: not a readable"),
        ("rediss://:hunter2@host/0?ssl_keyfile=" + __file__, "ssl_certfile is needed"),
        ("rediss://:hunter2@host/0?ssl_certfile=" + __file__, "ssl_certfile: not a readable"),
    ],
)
def test_a_wrong_url_is_one_clear_error_without_its_password(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        Fleet(url)
    assert "hunter2" not in repr(raised.getrepr(style="short")) + str(raised.value)
    assert raised.value.__context__ is None or "hunter2" not in str(raised.value.__context__)
    with pytest.raises(ValueError, match=problem) as of_settings:
        Settings(redis_url=url)
    assert "hunter2" not in str(of_settings.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:hunter2@host:5672//",
        "amqps://guest:hunter2@host/",
        "AMQP://guest:hunter2@host//",
        "pyamqp://guest:hunter2@host//",
        "amqp://guest:hunter2@host:5672;amqp://guest:hunter2@other:5672",
        "sqs://AKIA:hunter2/a+b@",
        "memory://",
        "filesystem://",
        "sqla+sqlite:///hunter2.db",
        "confluentkafka://hunter2@host:9092",
        "azureservicebus://policy:hunter2/=@host",
        "http://hunter2@host",
        "hunter2",
        " ",
    ],
)
def test_a_url_of_another_broker_is_one_error_that_says_why_and_where_to_read(url: str) -> None:
    with pytest.raises(ConfigError, match=r"Redis or Valkey.*docs/design/broker\.md") as raised:
        Fleet(url)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ValueError, match=r"docs/design/broker\.md") as of_settings:
        Settings(redis_url=url)
    assert "hunter2" not in str(of_settings.value)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("unix:///tmp/redis.sock", "Unix sockets"),
        ("sentinel://:hunter2@a:26379;sentinel://:hunter2@b:26379", "follows the primary"),
        ("redis+cluster://host:7000", "follows the primary"),
    ],
)
def test_a_redis_that_is_reached_in_another_way_is_not_called_another_broker(
    url: str, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice) as raised:
        normalized(url)
    assert "broker.md" not in str(raised.value)


def test_an_encrypted_key_is_an_error_and_no_question_on_the_terminal(
    authority: Authority, tmp_path: Path
) -> None:
    client = authority.issue("client", password=b"secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        normalized(f"rediss://host/0?ssl_certfile={client.certificate}&ssl_keyfile={client.key}")


def test_a_path_that_celery_would_decode_twice_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    copy = tmp_path / "a%20b.pem"
    copy.write_bytes(authority.file.read_bytes())
    with pytest.raises(ConfigError, match="must not contain %"):
        normalized(f"rediss://host/0?ssl_ca_certs={tmp_path}/a%2520b.pem")


def test_no_library_shows_the_password_of_a_url() -> None:
    url = normalized(f"rediss://user:hunter2{ENCODED}@host:6380/3")
    with Celery(set_as_current=False, broker=url, backend=url) as app:
        shown = [
            masked(url),
            sanitize_url(url),
            sanitize_url(f"workers.runtime.results.result_backend:WorkerResultBackend+{url}"),
            app.backend.as_uri(),
            repr(app.backend),
            app.bugreport(),
            repr(app.conf.table(with_defaults=True)),
            *(Connection(own + url).as_uri() for own in ("", "fleet", "once")),
            repr(Connection(url)),
        ]
    assert [text for text in shown if "hunter2" in text] == []
    assert masked(url) == "rediss://user:***@host:6380/3"
    assert masked("redis://:secret@host") == "redis://:***@host/0"
    assert masked("redis://user@host/1") == "redis://user@host/1"
    assert masked("redis://host/1") == "redis://host/1"

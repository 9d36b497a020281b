"""Settings that differ between machines: the environment variables FLEET_*."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from primarch_fleet.errors import ConfigError
from primarch_fleet.redis_url import normalized
from primarch_fleet.validation import Location, explain

ROOT = Path(__file__).resolve().parent.parent


def _check_blob_url(url: str) -> str:
    parts = urlsplit(url)
    if url and not parts.scheme:
        raise ValueError("no protocol; write file:///srv/bodies or s3://bucket/fleet")
    if parts.password or parts.query:
        raise ValueError(
            "remove the credentials: producers are told this URL. fsspec reads credentials from "
            "where its protocol keeps them, or from variables such as FSSPEC_FTP_PASSWORD"
        )
    return url


def _redis_url(url: str) -> str:
    return normalized(url) if url else url


class Settings(BaseSettings):
    """Each field is an environment variable: `redis_url` is FLEET_REDIS_URL."""

    model_config = SettingsConfigDict(env_prefix="FLEET_", hide_input_in_errors=True)

    #: The broker and result store, `redis://` or, for TLS, `rediss://`. Empty: only the one-machine
    #: fleet (`make up`) runs, with its own.
    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field("", repr=False)
    #: The file with models, engines and policies.
    config: Path = ROOT / "config" / "fleet.yaml"
    #: Folder for the queues of the one-machine fleet and for input files of batches.
    data_dir: Path = ROOT / ".fleet"
    #: Where the batch lane stores bodies larger than `batch.body_limit`, as an fsspec URL:
    #: `file:///srv/bodies`, `s3://bucket/fleet`. Batch workers must reach it, and producers who
    #: wait for large answers. Empty: all bodies stay in Redis.
    bodies: Annotated[str, AfterValidator(_check_blob_url)] = Field("", repr=False)
    #: Secret key of the hashes in place of the names of tenants and end users, for providers and
    #: engines; all workers need the same. Empty: the first worker makes one and stores it in Redis.
    hash_key: str = Field("", repr=False)
    #: The model whose engine a local worker runs. Empty: the first engine in the file.
    engine: str = ""
    #: The Python interpreter with vLLM, for the one-machine fleet. Empty: that of
    #: `make engine`.
    engine_python: Path | None = None
    #: Tasks in flight in one worker process. A local worker holds what its engine has slots for.
    concurrency: int = Field(500, gt=0)
    #: Seconds that a stopping worker waits for its tasks before it returns their messages.
    drain_timeout: float = Field(30.0, ge=0)
    #: Seconds after which another worker takes over the tasks of a dead one.
    visibility_timeout: float = Field(30.0, gt=0)
    #: Seconds for which a result is kept: three days. All workers need the same.
    result_ttl: int = Field(3 * 86_400, ge=60)
    #: Seconds for which the chunks of a stream are kept after the last chunk.
    stream_ttl: int = Field(600, ge=10)
    #: Address of a process's Prometheus endpoint.
    metrics_host: str = "127.0.0.1"
    #: Port of a process's Prometheus endpoint. 0 takes a free port.
    metrics_port: int = Field(0, ge=0, le=65535)


@cache
def settings() -> Settings:
    """Return this process's settings.

    Raises:
        ConfigError: A variable is wrong; the error names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(explain(error, _variable)) from None


def _variable(location: Location) -> str:
    """The environment variable of a setting."""
    return f"FLEET_{str(location[0]).upper()}"


#: Variables that Celery prefers to an app's own settings. Its options -b and --result-backend set
#: the first two. https://docs.celeryq.dev/en/stable/userguide/configuration.html#broker-url
_CELERYS_OWN = (
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
)


def celery_url() -> str:
    """Return `redis_url()` as the broker and result backend of the fleet's Celery app.

    Raises:
        ConfigError: As `redis_url` does; or Celery would use other servers than the fleet's.
    """
    if found := [name for name in _CELERYS_OWN if os.environ.get(name)]:
        raise ConfigError(
            f"unset {', '.join(found)}, and pass neither -b nor --result-backend: Celery would use "
            "them in place of FLEET_REDIS_URL, which names the broker and result store of the fleet"
        )
    return redis_url()


def redis_url() -> str:
    """Return the URL of the fleet's Redis, as every library takes it.

    Raises:
        ConfigError: FLEET_REDIS_URL is not set.
    """
    url = settings().redis_url
    if not url:
        raise ConfigError("FLEET_REDIS_URL is not set: set it to your Redis, or use `make up`")
    return url

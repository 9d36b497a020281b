"""What differs between machines: the environment variables FLEET_*."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from primarch_fleet.errors import ConfigError
from primarch_fleet.validation import Location, explain

ROOT = Path(__file__).resolve().parent.parent


def _check_place(url: str) -> str:
    parts = urlsplit(url)
    if url and not parts.scheme:
        raise ValueError("write it with its protocol, like file:///srv/bodies or s3://bucket/fleet")
    if parts.password or parts.query:
        raise ValueError(
            "producers are told it, so leave credentials out: fsspec takes them from where the "
            "protocol has them, or from variables like FSSPEC_FTP_PASSWORD"
        )
    return url


class Settings(BaseSettings):
    """One field an environment variable: `redis_url` is FLEET_REDIS_URL."""

    model_config = SettingsConfigDict(env_prefix="FLEET_", hide_input_in_errors=True)

    #: The broker and the result store. Empty: only the one-machine fleet runs, with its own.
    redis_url: str = Field("", repr=False)
    #: The fleet's models, engines and policies.
    config: Path = ROOT / "config" / "fleet.yaml"
    #: Where the one-machine fleet keeps its queues, and the batch lane its files in the making.
    data_dir: Path = ROOT / ".fleet"
    #: Where the batch lane puts bodies larger than `batch.body_limit`, as fsspec writes it:
    #: `file:///srv/bodies`, `s3://bucket/fleet`. Batch workers, and producers who wait for large
    #: answers, must reach it. Empty: all bodies stay in Redis.
    bodies: Annotated[str, AfterValidator(_check_place)] = Field("", repr=False)
    #: The engine that a local worker serves, by its model; empty: the first in the file.
    engine: str = ""
    #: The Python that has vLLM, for the one-machine fleet; empty: what `make engine` has made.
    engine_python: Path | None = None
    #: Tasks in flight in one worker process; a local worker holds what its engine has places for.
    concurrency: int = Field(500, gt=0)
    #: Seconds that a stopping worker lets its tasks finish before it gives them back.
    drain_timeout: float = Field(30.0, ge=0)
    #: Seconds after which the tasks of a dead worker start on another one.
    visibility_timeout: float = Field(30.0, gt=0)
    #: Address and port of a process's Prometheus endpoint; port 0 takes a free one.
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(0, ge=0, le=65535)


@cache
def settings() -> Settings:
    """The process's settings. Raises ConfigError, which names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(explain(error, _variable)) from None


def _variable(location: Location) -> str:
    """The environment variable of a setting."""
    return f"FLEET_{str(location[0]).upper()}"


def redis_url() -> str:
    """The Redis of a process that cannot run without one. Raises ConfigError without it."""
    url = settings().redis_url
    if not url:
        raise ConfigError("FLEET_REDIS_URL is not set: give the fleet's Redis, or use `make up`")
    return url

"""The view of `fleet deployments`: health and measured calls of the realtime lane."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis
from rich.table import Table
from rich.text import Text

from primarch_fleet.catalogue import CATALOGUE_KEY, Catalogue, CatalogueDeployment
from primarch_fleet.deployment_health import CHECKS_KEY, Health, read_health
from primarch_fleet.errors import ConfigError
from scheduler.admin.tables import plain_table
from workers.realtime.measurements import Calls, Measurements

UNKNOWN = Health(0, "not checked", None)


@dataclass(frozen=True)
class DeploymentStatus:
    """A deployment, the last check of its account, and its calls of the last five minutes."""

    deployment: str
    model: str
    account: str
    region: str | None
    healthy: bool
    #: Why the last check of the account failed or was none; "" after a successful check.
    reason: str
    check_seconds: float | None
    calls: int
    failures: int
    mean_seconds: float | None

    @classmethod
    def of(cls, deployment: CatalogueDeployment, health: Health, calls: Calls) -> DeploymentStatus:
        """Combine what is known of a deployment."""
        return cls(
            deployment=deployment.id,
            model=deployment.model,
            account=deployment.account,
            region=deployment.region,
            healthy=not health.is_unhealthy,
            reason=health.reason,
            check_seconds=health.seconds,
            calls=calls.count,
            failures=calls.failures,
            mean_seconds=calls.latency_seconds(),
        )


async def read_deployments(client: Redis) -> list[DeploymentStatus]:
    """Read the deployments, and their status, from what the workers have published.

    Raises:
        NoCatalogue: No worker has ever started at this broker.
        ConfigError: The workers are of a version that does not publish its deployments.
    """
    measurements, untyped = Measurements(client), _untyped(client)
    deployments = Catalogue.parse(await untyped.get(CATALOGUE_KEY)).deployments
    if deployments is None:
        raise ConfigError(
            "deployments: the running workers are of an older version, which does not publish its "
            "deployments; restart them with this version"
        )
    await measurements.exchange()
    checks = read_health(await untyped.hgetall(CHECKS_KEY))
    return [
        DeploymentStatus.of(
            deployment,
            checks.get(deployment.account, UNKNOWN),
            measurements.calls.get(deployment.id, Calls()),
        )
        for deployment in deployments
    ]


def _untyped(client: Redis) -> Any:
    """The client; redis-py types each command for its sync and async clients."""
    return client


def as_json(statuses: list[DeploymentStatus]) -> dict[str, Any]:
    """The report as JSON, times in seconds."""
    return {"deployments": [asdict(status) for status in statuses]}


def as_table(statuses: list[DeploymentStatus]) -> Table:
    """The report as a table for a terminal."""
    title = f"deployments of the realtime lane: {len(statuses)}"
    table = plain_table(title)
    for name in ("deployment", "model", "account", "region", "health"):
        table.add_column(name, overflow="fold")
    for name in ("calls", "failures", "mean time"):
        table.add_column(name, no_wrap=True, justify="right")
    for status in statuses:
        texts = (status.deployment, status.model, status.account, status.region or "")
        mean = "" if status.mean_seconds is None else f"{status.mean_seconds:.2f} s"
        table.add_row(
            *map(Text, texts), _health(status), str(status.calls), str(status.failures), mean
        )
    return table


def _health(status: DeploymentStatus) -> Text:
    if not status.healthy:
        return Text(f"unhealthy: {status.reason}", "red")
    return Text(status.reason or "healthy")

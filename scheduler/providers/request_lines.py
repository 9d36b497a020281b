"""Encodes requests as lines of a batch's input file."""

from __future__ import annotations

from config.fleet import FleetConfig
from config.provider import Deployment, Provider
from primarch_fleet.requests import Request
from scheduler.model import jsonl
from scheduler.providers import PROVIDERS
from scheduler.providers.translator import Json, Translator
from tasks.privacy import Privacy


class LineEncoder:
    """Encodes requests for the deployments of a configuration. Any thread may call it.

    Args:
        privacy: Adds what providers may learn of tenants and end users.
    """

    def __init__(self, config: FleetConfig, privacy: Privacy) -> None:
        self._deployments = {
            deployment.id: _DeploymentLines(
                deployment, config.providers[deployment.provider], privacy
            )
            for deployment in config.deployments
            if deployment.batch
        }

    def serves(self, deployment: str, upstream: str) -> bool:
        """Return whether the configuration still has the deployment, with the same model."""
        lines = self._deployments.get(deployment)
        return lines is not None and lines.upstream == upstream

    def encode(
        self, deployment: str, custom_id: str, request: Request, body: Json | None = None
    ) -> bytes:
        """Return a request's line, ASCII with a newline.

        Args:
            body: The request's body, if the caller has it.

        Raises:
            Untranslatable: The deployment's provider does not support the request.
        """
        return self._deployments[deployment].encode(custom_id, request, body)


class _DeploymentLines:
    def __init__(self, deployment: Deployment, provider: Provider, privacy: Privacy) -> None:
        self.upstream = deployment.upstream
        self._translator = Translator(deployment, provider, privacy)
        self._format = PROVIDERS[provider.litellm_provider].line

    def encode(self, custom_id: str, request: Request, body: Json | None) -> bytes:
        return jsonl.encode(self._format(custom_id, self._translator.translate(request, body)))

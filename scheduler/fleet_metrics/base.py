"""Metrics that are read from Redis."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import redis
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)


class RedisCollector(Collector):
    """Reads its metrics from Redis at each scrape.

    What cannot be read has no samples; all other metrics of the process are still scraped.

    Args:
        client: Must decode responses.
    """

    #: The `action` in the log if Redis does not answer.
    action: ClassVar[str]

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        try:
            yield from self.read()
        except (redis.RedisError, OSError) as error:
            name = type(self).__name__
            logger.warning("%s: not read: %s", name, error, extra={"action": self.action})

    @abstractmethod
    def read(self) -> Iterator[Metric]:
        """Yield each metric with its samples.

        Raises:
            redis.RedisError: Redis does not answer.
        """

"""What a worker's logs never show, at any level: secrets and prompts.

Celery builds the handlers; its signals let us set what they write.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

from tasks.redaction import without_secrets

#: The loggers whose records below INFO are written: none logs a prompt. Other libraries log whole
#: requests there (openai, httpx, LiteLLM, vLLM, botocore), and so does Celery's pool.
DEBUG_LOGGERS = frozenset(
    {"celery", "config", "kombu", "primarch_fleet", "scheduler", "tasks", "workers"}
)
NO_DEBUG_LOGGER = "celery.pool"


def is_shown(record: logging.LogRecord) -> bool:
    """Return whether a record is written: from INFO on, or of a logger that logs no prompt."""
    if record.levelno >= logging.INFO:
        return True
    package = record.name.partition(".")[0]
    return package in DEBUG_LOGGERS and record.name != NO_DEBUG_LOGGER


class RedactingFormatter(logging.Formatter):
    """Another formatter's text, tracebacks included, without secrets."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return without_secrets(self._formatter.format(record))


def protect(logger: logging.Logger) -> None:
    """Make all handlers of a logger write only what `is_shown`, without secrets."""
    for handler in logger.handlers:
        handler.addFilter(is_shown)
        handler.setFormatter(RedactingFormatter(handler.formatter or logging.Formatter()))


@after_setup_logger.connect(weak=False)
@after_setup_task_logger.connect(weak=False)
def _protect(logger: logging.Logger, **_: Any) -> None:
    protect(logger)

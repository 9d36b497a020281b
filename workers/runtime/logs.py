"""A worker's log: the action of each record, and at no level a secret or a prompt.

Celery builds the handlers; its signals let us set what they write.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

from config.log_format import ActionFormatter
from tasks.redaction import without_secrets

#: The loggers whose records below INFO are written: none logs a prompt. Other libraries log whole
#: requests there (openai, httpx, LiteLLM, vLLM, botocore), and so does Celery's pool.
DEBUG_LOGGERS = frozenset(
    {"celery", "config", "kombu", "primarch_fleet", "scheduler", "tasks", "workers"}
)
NO_DEBUG_LOGGER = "celery.pool"
#: LiteLLM's loggers. They have a handler of their own, and are made after ours in some workers.
LITELLM_LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")


def is_shown(record: logging.LogRecord) -> bool:
    """Return whether a record is written: from INFO on, or of a logger that logs no prompt."""
    if record.levelno >= logging.INFO:
        return True
    package = record.name.partition(".")[0]
    return package in DEBUG_LOGGERS and record.name != NO_DEBUG_LOGGER


def without_text(record: logging.LogRecord) -> bool:
    """Leave of a record where an error happened, and its type; the text may quote a request."""
    kind = record.exc_info[0] if record.exc_info else None
    name = kind.__name__ if kind else "a message"
    record.msg, record.args = f"{name} in {record.module}.{record.funcName}", ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


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
        formatter = ActionFormatter(handler.formatter or logging.Formatter())
        handler.setFormatter(RedactingFormatter(formatter))


for _name in LITELLM_LOGGERS:
    logging.getLogger(_name).setLevel(logging.ERROR)
    logging.getLogger(_name).addFilter(without_text)


@after_setup_logger.connect(weak=False)
@after_setup_task_logger.connect(weak=False)
def _protect(logger: logging.Logger, **_: Any) -> None:
    protect(logger)

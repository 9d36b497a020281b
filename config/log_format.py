"""Log lines with the `action` of their records: a word for programs, `action=account_paused`."""

from __future__ import annotations

import copy
import logging

#: Of processes whose log Celery does not set up.
LINE = "%(asctime)s %(levelname)s %(message)s"


class ActionFormatter(logging.Formatter):
    """Another formatter's text, with the record's action after the message."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        if action := getattr(record, "action", None):
            record = copy.copy(record)  # other handlers get the record as it was
            record.msg, record.args = f"{record.getMessage()} action={action}", ()
        return self._formatter.format(record)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Write the log of this process to stderr, unless it has a handler already."""
    handler = logging.StreamHandler()
    handler.setFormatter(ActionFormatter(logging.Formatter(LINE)))
    logging.basicConfig(level=level, handlers=[handler])

"""Log lines have the action of their records."""

import io
import logging

from config.log_format import ActionFormatter
from workers.runtime.logs import protect


def logger_to(text: io.StringIO, line: str = "%(levelname)s %(message)s") -> logging.Logger:
    logger, handler = logging.Logger("config"), logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(line))
    logger.addHandler(handler)
    return logger


def test_the_action_follows_the_message_and_comes_before_a_traceback() -> None:
    text = io.StringIO()
    logger = logger_to(text)
    protect(logger)
    try:
        raise ValueError("a reason")
    except ValueError:
        logger.exception("%d of %s", 3, "100 %", extra={"action": "parts_lost"})
    first, second, *_, last = text.getvalue().splitlines()
    assert first == "ERROR 3 of 100 % action=parts_lost"
    assert second.startswith("Traceback")
    assert last == "ValueError: a reason"


def test_a_record_without_an_action_and_the_record_of_other_handlers_stay_as_they_are() -> None:
    text, plain = io.StringIO(), io.StringIO()
    logger = logger_to(text)
    logger.handlers[0].setFormatter(ActionFormatter(logging.Formatter("%(message)s")))
    logger.addHandler(logging.StreamHandler(plain))
    logger.warning("one %s", "thing")
    logger.warning("two", extra={"action": "counted"})
    assert text.getvalue() == "one thing\ntwo action=counted\n"
    assert plain.getvalue() == "one thing\ntwo\n"

"""Receives Celery's control commands. A malformed one ends no worker and changes nothing.

A text that is no command is kept as a dead letter. A command that is unknown, has wrong arguments
or fails is logged, and answered with the error where an answer is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from kombu.pidbox import Node
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.runtime.leases import LEASES
from workers.runtime.redis_errors import REDIS_ERRORS

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, le=2**31, allow_inf_nan=False)]
#: https://docs.celeryq.dev/en/stable/reference/celery.app.task.html#celery.app.task.Task.rate_limit
Rate = Annotated[str, Field(pattern=r"^\d{1,9}(\.\d{1,9})?(/[smh])?$")]


class Arguments(BaseModel):
    """The arguments of Celery's commands, which mean the same in each command.

    Celery keeps some of them without a look: a queue whose name is a number ends a worker later, a
    time limit that is text fails each task.
    """

    model_config = ConfigDict(strict=True)

    task_id: Name | list[Name] | None = None
    ids: Name | list[Name] | None = None
    terminate: bool | Literal[0, 1] | None = None  # Flower sends a number
    signal: Name | int | None = None
    headers: dict[str, str | list[str]] | None = None
    task_name: Name | None = None
    rate_limit: Rate | Seconds | None = None
    soft: Seconds | None = None
    hard: Seconds | None = None
    n: Count | None = None
    max: Count | None = None
    min: Count | None = None
    queue: Name | None = None
    exchange: Name | None = None
    exchange_type: Literal["direct", "topic", "fanout"] | None = None
    routing_key: str | None = None
    from_node: Name | None = None
    revoked: list[str] | dict[str, Any] | None = None


class ControlNode(Node):
    """kombu's node, without the new subscription that Celery makes after each malformed command.

    In the meantime the worker would miss other commands.
    """

    hostname: str
    mailbox: Any

    def handle_message(self, body: Any, message: Any = None) -> Any:
        """Execute a command. Raises only errors of the connection, and SystemExit."""
        try:
            if message:
                _check_clock(message.headers.get("clock"))
            return super().handle_message(body, message)
        except REDIS_ERRORS:
            raise
        except Exception as exc:
            text = str(message.body if message else body)
            LEASES.dead_broadcast(self.mailbox.exchange.name, text, exc)
            return None

    def handle(self, method: str, arguments: Any = None) -> Any:
        """Execute a command by its name. Raises TypeError for a wrong argument."""
        try:
            Arguments.model_validate(arguments or {})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"][:1]) or "arguments"
            raise TypeError(f"{place}: {first['msg']}") from None
        return super().handle(method, arguments)


def _check_clock(clock: object) -> None:
    """Refuse a logical clock that the worker's own cannot follow."""
    if clock is not None and not (isinstance(clock, int) and 0 <= clock < 2**53):
        raise ValueError("the header 'clock' is not a time of a logical clock")

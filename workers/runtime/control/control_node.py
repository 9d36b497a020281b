"""Receives Celery's control commands. A malformed one ends no worker and changes nothing.

A text that is no command is kept as a dead letter. A command that is unknown or has wrong arguments
is refused before it changes anything: a line of the log, and the reason as the answer where one is
asked for. So is what a command itself refuses. A command that fails is logged with its traceback.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import Annotated, Any, Literal

from celery.platforms import signals
from kombu.pidbox import Node
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from workers.runtime.leases.leases import LEASES
from workers.runtime.redis_errors import REDIS_ERRORS

logger = logging.getLogger(__name__)


def _signal(name: str) -> str:
    """Check the name of a signal: Celery looks after it has revoked the tasks."""
    if not name.isupper() or not signals.supported(name):
        raise PydanticCustomError("signal", "write the name of a signal, such as SIGTERM")
    return name


def _rate(text: str) -> str:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?(/[smh])?", text, re.ASCII):
        raise PydanticCustomError("rate", "write a number of tasks per time, such as 10/s or 5/m")
    return text


Name = Annotated[str, Field(min_length=1, max_length=1024)]
Signal = Annotated[Name, AfterValidator(_signal)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, le=2**31, allow_inf_nan=False)]
#: https://docs.celeryq.dev/en/stable/reference/celery.app.task.html#celery.app.task.Task.rate_limit
Rate = Annotated[str, AfterValidator(_rate)]


class Arguments(BaseModel):
    """The arguments of Celery's commands, which mean the same in each command.

    Celery keeps some of them without a look: a queue whose name is a number ends a worker later, a
    time limit that is text fails each task.
    """

    model_config = ConfigDict(strict=True)

    task_id: Name | list[Name] | None = None
    ids: Name | list[Name] | None = None
    terminate: bool | Literal[0, 1] | None = None  # Flower sends a number
    signal: Signal | int | None = None
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

    handlers: dict[str, Any]
    hostname: str
    mailbox: Any
    state: Any

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

    def handle(self, method: Any, arguments: Any = None) -> Any:
        """Execute a command by its name, or refuse it: then the reply is {"error": reason}."""
        given = arguments or {}
        reason = self._refusal(method, given)
        reply = {"error": reason} if reason else super().handle(method, given)
        if isinstance(reply, dict) and isinstance(refused := reply.get("error"), str):
            action = {"action": "control_command_refused"}
            logger.warning("control command %.64r refused: %.200s", method, refused, extra=action)
        return reply

    def _refusal(self, method: Any, arguments: Any) -> str:
        """Why a command cannot be executed; "" if it can."""
        handler = self.handlers.get(method) if isinstance(method, str) else None
        if handler is None:
            return f"there is no command {str(method)[:64]!r}"
        try:
            signature = inspect.signature(handler)
            signature.bind(self.state, **arguments)
            checked = Arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"][:1]) or "arguments"
            return f"{place}: {first['msg']}"
        except TypeError as error:
            return str(error)
        names_task = "task_name" in signature.parameters
        is_unknown = names_task and checked.task_name not in self.state.app.tasks
        return "unknown task" if is_unknown else ""


def _check_clock(clock: object) -> None:
    """Refuse a logical clock that the worker's own cannot follow."""
    if clock is not None and not (isinstance(clock, int) and 0 <= clock < 2**53):
        raise ValueError("the header 'clock' is not a time of a logical clock")

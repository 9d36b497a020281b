"""What the headers and the body of a task's message may be.

Celery reads them in many places, on the worker's main thread, in the pool and hours later in a
completion. It trusts their types: a wrong type ends a worker, or a task without an outcome. So all
are checked when the message arrives. The fields and their meaning:
https://docs.celeryq.dev/en/stable/internals/protocol.html#version-2
"""

import threading
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from celery.app.task import Context
from celery.exceptions import InvalidTaskError
from kombu import compression, serialization
from kombu.exceptions import SerializerNotInstalled
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from primarch_fleet.errors import InvalidRequest

#: Characters of an id; those of Celery have 36.
MAX_ID_LENGTH = 1024

#: Also refuses text that has no UTF-8 form, and so cannot be part of a key.
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Seconds = Annotated[float, Field(ge=0, le=threading.TIMEOUT_MAX, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


def _known_compression(name: str) -> str:
    try:
        compression.get_encoder(name)
    except KeyError:
        raise ValueError("unknown") from None
    return name


def _known_serializer(name: str) -> str:
    try:
        serialization.dumps("", serializer=name)
    except SerializerNotInstalled:
        raise ValueError("unknown") from None
    return name


def _without_underscore(name: str) -> str:
    return name.rstrip("_")


class _Part(BaseModel):
    # A field of the name `kwargs` does not pass mypy with the plugin of pydantic.
    model_config = ConfigDict(strict=True, alias_generator=_without_underscore)


class Options(_Part):
    """How a signature is published: after its task has run, so that an error is worth a call.

    Celery repeats the publish after a KeyError, which kombu counts as a broken connection.
    """

    delivery_mode: int | Literal["transient", "persistent"] | None = None
    compression: Annotated[str, AfterValidator(_known_compression)] | None = None
    serializer: Annotated[str, AfterValidator(_known_serializer)] | None = None


class Signature(_Part):
    """A link, errback, chord or part of a chain."""

    task: str
    args: list[Any] | None = None
    kwargs_: dict[str, Any] | None = None
    options: Options | None = None
    subtask_type: str | None = None
    immutable: bool | None = None
    chord_size: int | None = None


#: A signature, or the name of its task.
Link = Signature | str


class _Following(_Part):
    """The tasks that follow this one."""

    callbacks: list[Link] | None = None
    errbacks: list[Link] | None = None
    chain: list[Link] | None = None
    chord: Signature | None = None


class Embed(_Following):
    """The third part of a body."""

    model_config = ConfigDict(extra="forbid")  # Celery copies all of it to `task.request`


class Headers(_Following):
    """The headers of a message, with those of its properties that Celery copies there."""

    id: Id
    task: Id
    root_id: Id | None = None
    parent_id: Id | None = None
    group: Id | None = None
    group_index: Count | None = None
    shadow: str | None = None
    retries: Count | None = None
    timelimit: Annotated[list[Seconds | None], Field(min_length=2, max_length=2)] | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Count | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    origin: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    args: list[Any] | tuple[Any, ...]
    kwargs_: dict[str, Any]


_EMBED: TypeAdapter[Embed | None] = TypeAdapter(Embed | None)
#: Headers become attributes of `task.request`: these would replace its methods.
_RESERVED = {name for name in dir(Context) if name[0] == "_" or callable(getattr(Context, name))}


def check_message(headers: Mapping[str, Any], embed: object) -> None:
    """Check the types of a message's parts.

    Args:
        headers: All that Celery makes of the message's headers and properties, with its `args` and
            `kwargs`.
        embed: The third part of the body.

    Raises:
        InvalidTaskError: A part has a wrong type or value. The error names the part, and has no
            value.
    """
    reserved = _RESERVED.intersection(headers)
    if reserved:
        raise InvalidTaskError(f"the header {min(reserved)!r} is reserved")
    try:
        Headers.model_validate(headers)
        _EMBED.validate_python(embed)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"][:2]) or "embed"
        raise InvalidTaskError(f"{place}: {first['msg']}") from None


def check_own_message(context: Context) -> None:
    """Check that a task runs from a message of its own, and so has an id.

    Raises:
        InvalidRequest: Celery's map, starmap or chunks call it: results, budgets and cancels have
            no id to go by.
    """
    if context.id is None:
        raise InvalidRequest(
            "request: it needs a message of its own; send a group, in place of map, starmap or "
            "chunks"
        )

"""Which errors come from Redis, and which from a message."""

from typing import TypeGuard

import redis
from celery.exceptions import BackendError, Reject
from kombu.exceptions import OperationalError

#: Redis cannot be reached, as opposed to: it answers with an error.
DISCONNECTED = (OSError, redis.ConnectionError, redis.TimeoutError)
#: Errors of the connection to Redis or of the server, not of a message.
REDIS_ERRORS = (*DISCONNECTED, redis.RedisError, OperationalError)


def comes_from_message(error: BaseException) -> TypeGuard[Exception]:
    """Return whether an error of Celery's code would come again in the next run of the task.

    Not if Redis, the result backend, the process or the task's own wish is the reason.
    """
    others = (*REDIS_ERRORS, BackendError, MemoryError, Reject)
    return isinstance(error, Exception) and not isinstance(error, others)

"""Result backends of Celery that leave no connection behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def closed_backends(app: Any) -> Iterator[None]:
    """Close the result backends that Celery makes; it leaves them open.

    No other block uses them: it may have another server.
    """
    make, made = app._get_backend, []

    def record() -> Any:
        made.append(make())
        return made[-1]

    app._get_backend = record
    _forget(app)
    try:
        yield
    finally:
        del app._get_backend
        _forget(app)
        for backend in made:
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None  # else a garbage-collected result reopens it
            backend.client.connection_pool.disconnect()
            if chords := vars(backend).get("chords"):
                chords.client.connection_pool.disconnect()


def _forget(app: Any) -> None:
    """Let the app make its backend again: that of each thread, or the one for all threads."""
    vars(app._local).clear()
    app._backend_cache = None

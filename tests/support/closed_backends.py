"""Result backends of Celery that leave no connection behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def closed_backends(app: Any) -> Iterator[None]:
    """Close the result backends that Celery makes for each thread; it leaves them open."""
    make, made = app._get_backend, []

    def record() -> Any:
        made.append(make())
        return made[-1]

    app._get_backend = record
    vars(app._local).clear()
    try:
        yield
    finally:
        del app._get_backend
        vars(app._local).clear()
        for backend in made:
            backend.result_consumer.stop()
            backend.result_consumer._pubsub = None  # else a garbage-collected result reopens it
            backend.client.connection_pool.disconnect()
            if chords := vars(backend).get("chords"):
                chords.client.connection_pool.disconnect()

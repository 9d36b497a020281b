"""A clock that a test moves by hand."""


class Clock:
    """Callable like `time.time` and `time.monotonic`; `now` is in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

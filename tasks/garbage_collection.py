"""Garbage collection in a process that serves: rarely, and without what stays anyway."""

import gc

#: New objects between two collections; Python's own figure is 700. A worker with 500 calls spent a
#: tenth of its time on visiting their objects, in pauses of up to 0.1 s (docs/benchmarks.md).
THRESHOLD = 20_000


def tune() -> None:
    """Collect once, then exclude all objects that exist by now for good, and collect rarely.

    With LiteLLM loaded, a full collection takes a quarter of a second, in which every stream stops.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)

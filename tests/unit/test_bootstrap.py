"""The start of a worker."""

import gc

from workers.bootstrap import _freeze_garbage_collection


def test_objects_loaded_at_the_start_are_excluded_from_garbage_collection() -> None:
    try:
        _freeze_garbage_collection()
        assert gc.get_freeze_count() > len(gc.get_objects())
    finally:
        gc.unfreeze()

"""What a worker does once its lane is ready."""

import gc

from workers.bootstrap import _freeze_garbage_collection


def test_what_is_loaded_is_looked_through_for_garbage_no_more() -> None:
    try:
        _freeze_garbage_collection()
        assert gc.get_freeze_count() > len(gc.get_objects())
    finally:
        gc.unfreeze()

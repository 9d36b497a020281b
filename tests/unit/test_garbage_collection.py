"""What a process that serves does not search for garbage, and how often it searches the rest."""

import gc
import warnings

from tasks import garbage_collection


def test_objects_loaded_at_the_start_are_excluded_and_the_others_are_visited_rarely() -> None:
    before = gc.get_threshold()
    gc.unfreeze()
    try:
        with warnings.catch_warnings():  # of what earlier tests have left
            warnings.simplefilter("ignore", ResourceWarning)
            garbage_collection.tune()
        assert gc.get_freeze_count() > len(gc.get_objects())
        assert gc.get_threshold() == (garbage_collection.THRESHOLD, *before[1:])
    finally:
        gc.set_threshold(*before)

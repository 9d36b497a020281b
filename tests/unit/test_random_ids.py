"""Random ids: as `uuid.uuid4` makes them, and no id twice."""

from __future__ import annotations

import uuid
from itertools import islice

from primarch_fleet.random_ids import random_uuids


def test_ids_are_different_uuids_of_version_4() -> None:
    ids = [*islice(random_uuids(), 1000), *islice(random_uuids(), 1000)]
    assert len(set(ids)) == 2000
    for one in ids:
        parsed = uuid.UUID(one)
        assert (str(parsed), parsed.version, parsed.variant) == (one, 4, uuid.RFC_4122)

"""The start of a worker."""

import pytest
from celery import Celery

from primarch_fleet.errors import ConfigError
from workers.bootstrap import refuse_key_prefix


@pytest.mark.parametrize("owner", ["broker", "result_backend"])
def test_a_prefix_for_all_keys_is_refused(owner: str) -> None:
    options = f"{owner}_transport_options"
    app = Celery(set_as_current=False)
    refuse_key_prefix(app)
    app.conf[options] = {"global_keyprefix": "ours:"}
    with pytest.raises(ConfigError, match=f"{options}: global_keyprefix is not supported"):
        refuse_key_prefix(app)

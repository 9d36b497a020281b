"""What operators have paused, as `fleet queues` and the metrics show it."""

from __future__ import annotations

import redis

from primarch_fleet.contract import BATCH_QUEUE
from primarch_fleet.queues import PAUSED_QUEUES_KEY
from scheduler.store.batch_pauses import WHOLE_LANE, Pause
from scheduler.store.keys import PAUSES


def read_paused_queues(client: redis.Redis) -> frozenset[str]:
    """Return the paused queues, and that of the batch lane while no batches are created.

    Args:
        client: Must decode responses.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    paused = {str(queue) for queue in client.smembers(PAUSED_QUEUES_KEY)}
    text = client.hget(PAUSES, WHOLE_LANE)
    if text and Pause.model_validate_json(text).until > client.time()[0]:
        paused.add(BATCH_QUEUE)
    return frozenset(paused)

"""Celery's settings, the same for workers, beat and Flower. Times in seconds.

Comments say why a setting differs from Celery's default. For the rest, see Celery's documentation.
"""

from kombu import Queue

from config.settings import celery_url, redis_url, settings
from primarch_fleet.contract import BATCH_QUEUE, PRIORITIES, REALTIME_QUEUE, SCHEDULER_QUEUE
from primarch_fleet.redis_support import HEALTH_CHECK_SECONDS
from primarch_fleet.redis_url import tls_options

_DAY = 86_400

broker_url = result_backend = celery_url()
# For Flower, which does not read the options of the URL.
broker_use_ssl = tls_options(redis_url())

# JSON only, so that no message of a producer is ever unpickled.
task_serializer = result_serializer = "json"
accept_content = result_accept_content = ["json"]

# A lane is a queue. The worker that serves a model declares its `local.<model>` queue.
task_default_queue = REALTIME_QUEUE
task_queues = [Queue(REALTIME_QUEUE), Queue(BATCH_QUEUE), Queue(SCHEDULER_QUEUE)]
task_routes = {
    "realtime.*": {"queue": REALTIME_QUEUE},
    "batch.*": {"queue": BATCH_QUEUE},
    "scheduler.*": {"queue": SCHEDULER_QUEUE},
}
# The Redis transport delivers messages without a priority first, so every message gets one.
task_default_priority = PRIORITIES["normal"]

# A message is acknowledged after its task, and a worker fetches only what it can run at once.
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1
worker_cancel_long_running_tasks_on_connection_loss = False
worker_enable_prefetch_count_reduction = False

# Wait for a broker that does not answer; never drop a result because Redis restarts.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True
broker_transport_options = {
    "visibility_timeout": settings().visibility_timeout,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": HEALTH_CHECK_SECONDS,
    "queue_order_strategy": "priority",
    "max_connections": 50,
}
redis_socket_timeout = 10
redis_socket_keepalive = True
redis_backend_health_check_interval = HEALTH_CHECK_SECONDS
result_backend_always_retry = True
# One result store, with its connections, for all threads; Celery's default is one per thread.
result_backend_thread_safe = True
result_backend_transport_options = {
    "retry_policy": {
        "max_retries": None,
        "interval_start": 0.2,
        "interval_step": 0.5,
        "interval_max": 5,
    }
}
task_publish_retry_policy = {
    "max_retries": 1000,
    "interval_start": 0.2,
    "interval_step": 0.5,
    "interval_max": 5,
}

result_expires = settings().result_ttl
# Longer than the longest batch; otherwise a chord over batch results would never run its body.
result_chord_expires = 3 * _DAY

# Flower shows every task, but no prompt and no answer: tasks/event_text.py has what it shows.
worker_send_task_events = True
task_send_sent_event = True
worker_hijack_root_logger = False

worker_pool = "workers.runtime.pool.pool:TaskPool"
worker_concurrency = settings().concurrency
fleet_drain_timeout = settings().drain_timeout

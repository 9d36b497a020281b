"""What replaces parts of Celery and kombu in a worker: pool, transport, leases, results."""

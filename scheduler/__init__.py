"""The batch lane: parked requests become half-price batches, and batches become results.

parked -> aggregate (cut by the flush policy) -> submit (upload, create) -> poll -> drain
(read both result files) -> deliver (complete each request's own Celery task)
"""

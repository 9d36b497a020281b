"""The batch lane: parked requests become half-price batches, and batches become results.

The life of a request:

intake      park the request
jobs        create a batch by the flush policy; upload, create, poll; read its result files
completion  complete the Celery task of each request
promotion   or move it to the realtime lane, or cancel it

`store` and `providers` serve all of them; `admin`, `cli` and `fleet_metrics` are for operators.
"""

"""The batch lane: parked requests become half-price batches, and batches become results.

The life of a request:

intake      park the request
jobs        create a batch by the flush policy; upload, create, poll; read its result files
completion  complete the Celery task of each request

`store` and `providers` serve all of them; `admin` has the operators' views and commands.
"""

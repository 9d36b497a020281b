"""Requests leave the batch or the local lane unanswered: for the realtime lane, or cancelled.

`withdrawal` handles parked requests: a message is gone, so Celery builds a new one from the stored
task context. `local` handles messages that wait for an engine: one script replaces a message by an
edited copy, so that the request is always in exactly one queue.
"""

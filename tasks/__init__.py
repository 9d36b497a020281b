"""The Celery app and its tasks: one thin module for each lane."""

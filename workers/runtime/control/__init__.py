"""Celery's remote control, and how tasks are revoked."""

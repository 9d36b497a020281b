"""Requests are completed: their Celery tasks get results, links and errbacks."""

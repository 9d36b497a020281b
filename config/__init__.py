"""The fleet's configuration: fleet.yaml, the environment and Celery's settings."""

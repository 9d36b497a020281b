"""The event loop of a worker, and what runs beside it."""

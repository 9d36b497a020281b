"""The state of the batch lane, in Redis."""

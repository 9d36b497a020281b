"""Requests become lines of batch files, in each provider's own form."""

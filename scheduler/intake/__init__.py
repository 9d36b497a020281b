"""Requests arrive: messages of the batch lane become parked requests."""

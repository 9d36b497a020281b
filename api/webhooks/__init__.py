"""Webhooks to callers: signed, repeated, and given up after days."""

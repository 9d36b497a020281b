"""Malformed messages and control commands against the real workers of every lane."""

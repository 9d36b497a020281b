"""Outcomes are stored, and what follows a task is published."""

"""The documentation, and the tools that generate and check it."""

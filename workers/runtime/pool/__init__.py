"""The pool: how tasks run and end."""

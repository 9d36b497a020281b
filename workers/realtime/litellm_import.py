"""Imports LiteLLM, without garbage collection: that would take a third of the time.

A module outside of this package imports this module before any that imports LiteLLM.
"""

import gc

__all__ = ["litellm"]

_collects = gc.isenabled()
gc.disable()
try:
    import litellm
finally:
    if _collects:
        gc.enable()
# What the import has made stays for good. Otherwise the next collections visit a million objects.
gc.freeze()

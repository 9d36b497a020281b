"""The leases of a process: renewed, ended, returned, and swept after a death."""

"""Batches of `/v1/batches`, run by the processes of `fleet serve`."""

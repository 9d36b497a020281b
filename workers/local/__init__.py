"""The local lane: one engine on this machine's hardware answers its model's queue."""

"""The local lane: one engine on own hardware behind the tasks of its model's queue."""

"""What the HTTP API keeps in Redis, under keys that start with `fleet:api:`."""

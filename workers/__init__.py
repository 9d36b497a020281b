"""The workers of the realtime and the local lane, and what all workers share."""

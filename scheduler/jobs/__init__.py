"""Jobs run: requests are grouped, submitted as batches, followed and read."""

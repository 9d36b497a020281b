"""The data of the batch lane: requests, jobs and lines of batch files. No I/O."""

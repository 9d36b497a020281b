"""What workers publish: metrics, cost report, heartbeat and throughput."""

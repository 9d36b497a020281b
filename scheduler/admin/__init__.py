"""What operators use: commands, status, costs and the webhook receiver."""

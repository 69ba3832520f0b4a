"""What limits a server, and its capacity, overall and within its latency targets."""

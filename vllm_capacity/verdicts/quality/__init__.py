"""What is wrong with the telemetry, and how much it can move which figure."""

"""What a window cost, how much of that was idle, and what it would cost elsewhere."""

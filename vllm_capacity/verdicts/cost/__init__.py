"""What a window cost, what of that was idle, and what it would cost elsewhere."""

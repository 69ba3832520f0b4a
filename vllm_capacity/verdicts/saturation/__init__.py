"""What limits a server, how much it can do, and what it can do within its targets."""

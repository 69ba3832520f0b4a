"""Everything that talks to a running system; clocks and HTTP clients are passed in as arguments."""

"""Whatever runs against a running system; clocks and HTTP clients come in as arguments."""

"""Frames become judgements. Pure: no I/O, no clock, no SQL; only arguments."""

"""Turns frames into verdicts. Pure: no I/O, no clock, no SQL; only arguments."""

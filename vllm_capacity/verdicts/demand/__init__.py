"""Demand ahead, with intervals measured on the same series."""

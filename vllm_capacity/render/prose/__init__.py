"""Figures as sentences."""

"""Demand forecasts, with intervals calibrated on the same series."""

"""Stored telemetry: the canonical tables, the window folder, the minute rollup."""

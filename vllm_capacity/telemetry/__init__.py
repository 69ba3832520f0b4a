"""Telemetry at rest: the canonical tables, the window folder, the minute rollup."""

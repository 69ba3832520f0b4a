"""Data sources, one module per format: scrapes, OTLP columns or Parquet to canonical rows."""

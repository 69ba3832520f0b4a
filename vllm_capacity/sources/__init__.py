"""One dialect each: in come scrapes, OTLP columns or Parquet; out come canonical rows."""

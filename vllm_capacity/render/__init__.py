"""What a person sees: charts, words, tables, the report page. No arithmetic."""

"""All output for people: charts, sentences, tables, the report page. No arithmetic."""

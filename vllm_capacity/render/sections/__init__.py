"""The tables and sentences of a page, a module per question."""

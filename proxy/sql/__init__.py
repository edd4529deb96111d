"""Parsing, classification and splicing of SQL text. Knows statements, knows neither connections nor versions."""

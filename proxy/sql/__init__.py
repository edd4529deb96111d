"""Parsing, classification and splicing of SQL text: statements, neither connections nor versions."""
